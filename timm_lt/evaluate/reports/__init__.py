"""Reports of run folders: plots, the HTML page of a run, and the page that compares runs."""

from .comparison_page import write_comparison
from .mistakes import write_mistakes
from .run_page import write_report
from .runs import load_run, read_summary

__all__ = ['load_run', 'read_summary', 'write_comparison', 'write_mistakes', 'write_report']
