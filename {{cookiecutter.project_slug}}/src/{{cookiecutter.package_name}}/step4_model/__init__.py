"""Which models do we try, how are they trained, tuned and tracked?"""
