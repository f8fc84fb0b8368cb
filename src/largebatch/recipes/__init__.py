"""Recipes: functions that return a run, the only place where a model meets an optimizer."""
