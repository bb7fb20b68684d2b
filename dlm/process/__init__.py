"""Every way of destroying a sequence, one file per family."""

from dlm.process.base import Bound, Denoise, Process
from dlm.process.flow import FlowMatching
from dlm.process.focal import FocalDiffusion
from dlm.process.genmd4 import GenMaskedDiffusion
from dlm.process.masked import AnyOrder, MaskedDiffusion
from dlm.process.score import ScoreMaskedDiffusion, ScoreUniformDiffusion
from dlm.process.uniform import UniformDiffusion

__all__ = [
    "AnyOrder",
    "Bound",
    "Denoise",
    "FlowMatching",
    "FocalDiffusion",
    "GenMaskedDiffusion",
    "MaskedDiffusion",
    "Process",
    "ScoreMaskedDiffusion",
    "ScoreUniformDiffusion",
    "UniformDiffusion",
]
