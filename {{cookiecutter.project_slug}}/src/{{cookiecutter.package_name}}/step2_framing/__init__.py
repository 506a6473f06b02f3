"""What type of problem is it, what goes in and out, is ML the right tool?"""
