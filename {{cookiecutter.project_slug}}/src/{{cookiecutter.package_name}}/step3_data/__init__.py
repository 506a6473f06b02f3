"""What data do we have, is it sound, how does it become features?"""
