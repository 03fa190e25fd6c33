from .report import Compared as Compared
from .report import Measured as Measured
from .report import Progress as Progress
from .report import TuneReport as TuneReport
from .tuning import tune as tune
