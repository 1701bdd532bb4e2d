from ._correlations import bootstrap_rank_correlation as bootstrap_rank_correlation
from ._intervals import Interval as Interval
from ._intervals import bootstrap_mean as bootstrap_mean
from ._jackknife import jackknife as jackknife
