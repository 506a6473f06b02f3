"""What are we optimizing, for whom, under which constraints?"""
