# From raw images to the report, one study at a time:
#
#   download -> verify -> prepare -> (pretrain) -> train -> predict -> metrics
#       -> tables, figures, claims -> report -> notebooks
#
# and, for studies of test-time methods, orbits -> methods -> latency in place of predict.
#
#   snakemake                                     the default study, config/digits.yaml
#   snakemake --configfile config/cifar10.yaml    another one
#   snakemake --config study=quick 'seeds=[0]'    with a change, in results/quick
#   snakemake -n                                  what would run, and why
#
# Every rule is files and one command, `python -m eqadapt VERB --flags`, that can be typed as well.
# profiles/default is loaded by itself.

from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"


if PLAN:

    include: "workflow/rules/test_time.smk"

else:

    include: "workflow/rules/evaluate.smk"


include: "workflow/rules/analysis.smk"
include: "workflow/rules/notebooks.smk"


report: "workflow/report/workflow.rst"


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.analysis.input,
        [] if PLAN else rules.notebooks.input,
    message:
        "all of it: see {rules.report.output.report}"
