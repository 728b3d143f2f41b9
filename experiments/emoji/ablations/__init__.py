"""Trainings of equal time that differ in one setting."""
