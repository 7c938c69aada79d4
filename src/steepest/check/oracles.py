"""Moved to `steepest.oracles`; this module will be removed in the next release."""

from ..oracles import ORACLES as ORACLES
from ..oracles import SECOND as SECOND
