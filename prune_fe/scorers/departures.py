"""List how scorers that run another package's code depart from the papers that they are named after."""

from collections.abc import Mapping

DEPARTURES: Mapping[str, str] = {
    "tp-magnitude": "torch-pruning adds the scales of norms and the weights that read a unit to the unit's own filter",
    "tp-bn-scale": "torch-pruning divides the mean of |γ| over all batch norms that a unit passes by the group's mean",
    "tp-lamp": "torch-pruning applies LAMP, which scores single weights, to the squared norms of whole units",
    "tp-fpgm": "torch-pruning takes distances between w², not filters, and includes the weights that read a unit",
    "tp-taylor": "torch-pruning sums |w·∂E/∂w| where Molchanov et al. square the sum, and never counts batch norms",
    "tp-hessian": "torch-pruning keeps the squared gradient of the last image only, and no second derivative",
}
"""Name of the scorer -> what torch-pruning's code does differently from the paper."""
