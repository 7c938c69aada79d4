"""Moved to `steepest.oracles`; this name goes with the next release."""

from ..oracles import ORACLES as ORACLES
from ..oracles import SECOND as SECOND
