"""Helpers that know nothing about GST; they import nothing from the layers above."""
