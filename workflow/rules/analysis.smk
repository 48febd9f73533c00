"""Predictions to numbers, tables, figures, verdicts and the report; nothing here runs a model.

results/<study>/{study.yaml,predictions,runs,galleries}
    -> metrics.csv, headline/*.json, tables/*, figures/*, claims.json -> report.html
"""


rule study_config:
    input:
        study=study_file(),
    output:
        study=STUDY_YAML,
    log:
        f"{LOGS}/study_config.log",
    conda:
        ENVIRONMENT
    params:
        study=digest_of(STUDY.to_yaml()),
    message:
        "write {output.study}"
    shell:
        "cp {input.study} {output.study} > {log} 2>&1"


rule metrics:
    input:
        study=STUDY_YAML,
        predictions=run_files(PREDICTED, PREDICTIONS),
        records=run_files(PREDICTED if PLAN else STUDY.trained_runs(), RECORD),
        latency=rules.latency.output if PLAN else [],
    output:
        metrics=report(
            f"{RESULTS}/{outputs.METRICS}",
            caption="../report/metrics.rst",
            category="Tables",
        ),
    log:
        f"{LOGS}/metrics.log",
    benchmark:
        f"{LOGS}/metrics.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.metrics"),
    message:
        "compute {output.metrics}"
    shell:
        'python -m eqadapt metrics --results "$RESULTS" > {log} 2>&1'


rule tables:
    input:
        study=STUDY_YAML,
        metrics=rules.metrics.output.metrics,
        predictions=run_files(PREDICTED, PREDICTIONS),
        published=PUBLISHED,
    output:
        tables=result_files(outputs.table_files(STUDY.config), ".csv"),
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{LOGS}/tables.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.tables"),
    message:
        "write the tables"
    shell:
        'python -m eqadapt tables --results "$RESULTS" --published {input.published}'
        " > {log} 2>&1"


rule figures:
    input:
        study=STUDY_YAML,
        metrics=rules.metrics.output.metrics,
        predictions=run_files(PREDICTED, PREDICTIONS),
        galleries=[] if PLAN else run_files(STUDY.runs(), GALLERY),
        temperatures=temperatures(),
        histories=[] if PLAN else run_files(STUDY.trained_runs(), HISTORY),
    output:
        figures=result_files(
            outputs.figure_files(STUDY.config), ".svg", *outputs.gallery_files(STUDY.config)
        ),
    log:
        f"{LOGS}/figures.log",
    benchmark:
        f"{LOGS}/figures.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.figures"),
    message:
        "draw the figures"
    shell:
        'python -m eqadapt figures --results "$RESULTS" > {log} 2>&1'


rule claims:
    input:
        study=STUDY_YAML,
        metrics=rules.metrics.output.metrics,
        predictions=run_files(PREDICTED, PREDICTIONS),
        transfers=TRANSFER if STUDY.config["transfer"] else [],
        published=PUBLISHED,
    output:
        claims=f"{RESULTS}/{outputs.CLAIMS}",
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{LOGS}/claims.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.claims"),
    message:
        "judge the claims"
    shell:
        'python -m eqadapt claims --results "$RESULTS" --published {input.published}'
        " > {log} 2>&1"


if headline_files():

    rule headline:
        input:
            metrics=rules.metrics.output.metrics,
        output:
            cells=headline_files(),
        log:
            f"{LOGS}/headline.log",
        conda:
            ENVIRONMENT
        params:
            code=code_id("eqadapt.commands.headline"),
        message:
            "write the headline numbers"
        shell:
            'python -m eqadapt headline --results "$RESULTS" > {log} 2>&1'


rule report:
    input:
        study=STUDY_YAML,
        metrics=rules.metrics.output.metrics,
        tables=rules.tables.output.tables,
        figures=rules.figures.output.figures,
        claims=rules.claims.output.claims,
        published=PUBLISHED,
    output:
        report=report(
            f"{RESULTS}/{outputs.REPORT}",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{LOGS}/report.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.report"),
        template=data_id("analysis/report.html.j2"),
    message:
        "write {output.report}"
    shell:
        'python -m eqadapt report --results "$RESULTS" --published {input.published}'
        " > {log} 2>&1"


rule analysis:
    input:
        rules.report.input,
        headline_files(),
        report=rules.report.output.report,
    message:
        "the analysis is done: see {input.report}"


localrules:
    study_config,
    analysis,
