"""Judging what a run made: graders and calibration of confidence."""
