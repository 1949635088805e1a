"""Estimators for scikit-learn: features, regression, classification, components and clusters from a Nystrom approximation.

They go into pipelines, grid searches and `set_output`, pass scikit-learn's estimator checks, and keep arrays of other libraries
(PyTorch, CuPy, JAX) what and where they are.
"""

from __future__ import annotations

from softlinalg._sklearn_clusters import NystromSpectralClustering
from softlinalg._sklearn_features import NystromFeatures, NystromPCA
from softlinalg._sklearn_ridge import NystromRidge, NystromRidgeClassifier

__all__ = ["NystromFeatures", "NystromPCA", "NystromRidge", "NystromRidgeClassifier", "NystromSpectralClustering"]
