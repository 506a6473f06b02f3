"""How do we notice trouble, and when do we retrain?"""
