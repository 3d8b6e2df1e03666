"""Tune the prompts of any LangGraph agent by backpropagation through text."""

from __future__ import annotations

from lg_textgrad import executors, models, optim
from lg_textgrad._version import __version__
from lg_textgrad.acceptance import (
    Acceptance,
    Better,
    Guarded,
    Outcome,
    Priced,
    Sequential,
    Significant,
    Verdict,
)
from lg_textgrad.approval import Approval, Approver, Review
from lg_textgrad.bindings.state import StateText
from lg_textgrad.bindings.tool_modes import Tools
from lg_textgrad.budget import Budget
from lg_textgrad.critics import (
    AutoCritic,
    Critic,
    LLMCritic,
    ProvenCredit,
    SelfRewardingCritic,
    TraceCritic,
)
from lg_textgrad.data import read_examples, read_prompts
from lg_textgrad.demos import Demo
from lg_textgrad.discovery import adiscover, discover
from lg_textgrad.errors import LGTextGradError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.ledger import Ledger, use_ledger
from lg_textgrad.objective import Loss, Objective, Scored
from lg_textgrad.parameter import Edit, Gradient, Parameter, candidate_hash, prompts
from lg_textgrad.pareto import Pareto
from lg_textgrad.planning import Schedule
from lg_textgrad.recording.remote import RemoteSource
from lg_textgrad.refining import Draft, Refined, arefine, refine
from lg_textgrad.result import Result
from lg_textgrad.run import Candidate, Example, Execution, Feedback, ModelCall, Run, ToolCall, Usage
from lg_textgrad.screening import OnBatch, Screening
from lg_textgrad.selection import Entry, Incumbent, Selection
from lg_textgrad.store import Store
from lg_textgrad.trace import Edge, Trace
from lg_textgrad.traffic import Patience
from lg_textgrad.trainer import Trainer
from lg_textgrad.watching import Watched, watch

__all__ = [
    "Acceptance",
    "Approval",
    "Approver",
    "AutoCritic",
    "Better",
    "Budget",
    "Candidate",
    "Critic",
    "Demo",
    "Draft",
    "Edge",
    "Edit",
    "Entry",
    "Example",
    "Execution",
    "Feedback",
    "Gradient",
    "Guarded",
    "Incumbent",
    "LGTextGradError",
    "LLMCritic",
    "Ledger",
    "Loss",
    "ModelCall",
    "Objective",
    "OnBatch",
    "Outcome",
    "Parameter",
    "Pareto",
    "Patience",
    "Priced",
    "ProvenCredit",
    "Refined",
    "RemoteSource",
    "Result",
    "Review",
    "Run",
    "Schedule",
    "Scored",
    "Screening",
    "Selection",
    "SelfRewardingCritic",
    "Sequential",
    "Significant",
    "StateText",
    "Store",
    "ToolCall",
    "Tools",
    "Trace",
    "TraceCritic",
    "TrainableGraph",
    "Trainer",
    "Usage",
    "Verdict",
    "Watched",
    "__version__",
    "adiscover",
    "arefine",
    "candidate_hash",
    "discover",
    "executors",
    "models",
    "optim",
    "prompts",
    "read_examples",
    "read_prompts",
    "refine",
    "use_ledger",
    "watch",
]
