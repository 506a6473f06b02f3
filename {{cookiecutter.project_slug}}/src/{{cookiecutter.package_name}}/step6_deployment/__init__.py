"""How are predictions served, how fast, at what cost?"""
