"""The text families that tests load, each written as a tiny checkpoint."""

from __future__ import annotations

from manyvec import Encoder

from . import Golden
from .bert import DOCUMENTS, QUERIES, write_dnn, write_margin_mse, write_plain, write_stanford, write_vespa
from .saved import write_pylate
from .xlm_roberta import write_bge_m3, write_colbert_xm

WRITERS = {
    "stanford": write_stanford,
    "vespa": write_vespa,
    "dnn": write_dnn,
    "margin-mse": write_margin_mse,
    "colbert-xm": write_colbert_xm,
    "bge-m3": write_bge_m3,
    "pylate": write_pylate,
    "plain": write_plain,
}


def assert_golden(encoder: Encoder, golden: Golden) -> None:
    golden.check(encoder.encode_queries(QUERIES), encoder.encode_documents(DOCUMENTS), atol=2e-5)
