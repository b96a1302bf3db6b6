"""Speed of fsmer beside its peers, measured in one run: ``python -m benchmarks`` prints ratios and kept promises."""
