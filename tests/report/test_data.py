"""What the page is made of: numbers of runs, jobs, fusions and sweeps, and what is left out with its reason."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_runs import SPEC, drawn_scores, write_drawn_run
from drawn_scores import scores_of
from feature_sets import feature_store
from har_command import har
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, EncodingSpec, FlowSpec, ReductionSpec, VideoRecord
from har_pipeline.evaluation.calibration import reliability
from har_pipeline.evaluation.categories import Grouping
from har_pipeline.evaluation.compare import compare_members
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.fusion_table import fuse, write_fusion
from har_pipeline.evaluation.members import load_members
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.report import charts
from har_pipeline.report.data import ReportSources, collect_results
from har_pipeline.report.page import render, script_json, write_report
from har_pipeline.report.words import describe_clips, describe_features, describe_run, option_rows

CLASSES = ("a", "b", "c", "d", "e", "f")
VIDEOS = [f"v{n:02d}" for n in range(36)]
