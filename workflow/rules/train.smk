"""Prepared data to trained runs.

data/prepared/{preparation} -> results/<study>/pretrained/{dataset}-{backbone}.safetensors
    -> results/<study>/runs/<run>/{checkpoint.safetensors,history.csv,run.json}

Progress lies under scratch/, which no rule declares, so that a job that was killed goes on.
"""


rule pretrain:
    input:
        data=prepared_splits,
    output:
        weights=PRETRAINED,
        history=PRETRAINED.replace(".safetensors", ".csv"),
    log:
        f"{LOGS}/pretrain/{{dataset}}-{{backbone}}.log",
    benchmark:
        f"{LOGS}/pretrain/{{dataset}}-{{backbone}}.tsv"
    # Before runs that can begin at once: others wait for it.
    priority: 10
    conda:
        ENVIRONMENT
    threads: JOBS["threads"]
    resources:
        gpu=JOBS["gpu"],
        mem_mb=JOBS["mem_mb"],
        runtime=JOBS["runtime"],
    params:
        recipe=pretrain_recipe,
        flags=as_flags,
        code=code_id("eqadapt.commands.pretrain"),
    message:
        "pretrain {wildcards}"
    shell:
        'python -m eqadapt pretrain --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
        " {params.flags} 2>&1 | tee {log}"


for part in parts("train", STUDY.trained_runs()):

    rule:
        name:
            part.name
        input:
            data=prepared_splits,
            pretrained=pretraining,
            hub=part.hub,
            starts=part.starts,
        output:
            checkpoints=part.files(CHECKPOINT),
            histories=part.files(HISTORY),
            records=part.files(RECORD),
        log:
            f"{LOGS}/train/{part.title}.log",
        benchmark:
            f"{LOGS}/train/{part.title}.tsv"
        wildcard_constraints:
            regime=part.regime,
            backbone=part.backbone,
        conda:
            ENVIRONMENT
        threads: JOBS["threads"]
        resources:
            gpu=JOBS["gpu"],
            mem_mb=JOBS["mem_mb"],
            runtime=JOBS["runtime"],
        params:
            recipes=part.recipes,
            flags=as_flags,
            code=code_id("eqadapt.commands.train"),
        message:
            "train {wildcards}"
        shell:
            'python -m eqadapt train --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
            " {params.flags} 2>&1 | tee {log}"


rule runs:
    input:
        run_files(STUDY.trained_runs(), CHECKPOINT, HISTORY, RECORD),
    message:
        "all runs are trained"


localrules:
    runs,
