from .collections import read_collection as read_collection
from .reading import read as read
from .report import FileReport as FileReport
from .report import Problem as Problem
from .splitting import Splitter as Splitter
from .splitting import split as split
from .syncing import SyncReport as SyncReport
from .syncing import sync as sync
