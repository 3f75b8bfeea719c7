"""Factors read by a language model: schema induction, assignment, and what makes both safe to stop and run again."""
