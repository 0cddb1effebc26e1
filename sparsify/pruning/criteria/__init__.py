"""Criteria: functions that score weights, larger = keep."""

from .table import needs_data as needs_data
