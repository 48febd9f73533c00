"""Methods that adapt a frozen backbone at test time, as functions of its orbit cache."""

from eqadapt.test_time import catalogue as _catalogue
from eqadapt.test_time.methods import METHODS, TestTimeMethod, decide, get_method, register
from eqadapt.test_time.rules import Decision
from eqadapt.test_time.views import Views

del _catalogue

__all__ = ["METHODS", "Decision", "TestTimeMethod", "Views", "decide", "get_method", "register"]
