"""How do we measure success, offline and online?"""
