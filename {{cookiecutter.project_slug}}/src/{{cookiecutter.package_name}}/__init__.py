"""{{ cookiecutter.__project_name }}: a machine-learning system in seven steps."""
