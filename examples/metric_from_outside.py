"""A metric that fsmer does not know, added by one file: Cohen's kappa, which every report then has.

    fsmer evaluate kshot --episodes 50 --data synthetic:lab --import examples/metric_from_outside.py

Run by itself, this file evaluates the default model on synthetic clips.
"""

from fsmer.evaluation import register_metric


@register_metric("kappa")
def kappa(confusion):
    """Agreement beyond chance of a confusion matrix, rows the truth: 1 is perfect, 0 is chance."""
    total = confusion.sum()
    if total == 0:
        return 0.0
    agreed = confusion.trace() / total
    chance = (confusion.sum(axis=0) * confusion.sum(axis=1)).sum() / total**2
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


if __name__ == "__main__":
    import fsmer

    clips = fsmer.synthetic_clips("lab", 90)
    report = fsmer.evaluate(fsmer.load_protocol("kshot", way=3, shot=5, episodes=50), "facs-flow", clips=clips)
    print(report)
    print("kappa", round(report.figures["kappa"], 3), report.figures["kappa_interval"])
