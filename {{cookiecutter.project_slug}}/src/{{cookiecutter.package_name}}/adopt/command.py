"""`adopt` at work: read, infer, measure, say it, and only then write."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from ..params import PATH, SCRATCH, Params, ParamsError, line_numbers, parse
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import write_text
from ..step2_framing.contract import as_text
from ..step3_data.features import QUERY
from ..step3_data.source import connect, write_query
from ..step3_data.table import Table, open_table
from .infer import Asked, Contract, check_names, infer, label_text, plain_time
from .measure import Measured, best_kind, better_than, measure
from .profile import Column, profile
from .write import Document, features_sql, label_keys, metric_of, requirements_of, slices_of, split_of, stale_metrics, write_framing, write_rest

SUSPICIOUS = {"binary": 0.9, "multiclass": 0.9, "regression": 0.8}  # a score alone that is worth a question
"""
