"""What Holdfast's speed and safety are measured with, beside bare Celery and other job systems."""
