"""Trained runs to predictions: every test image in every pose.

results/<study>/runs/<run>/checkpoint.safetensors
    -> results/<study>/predictions/<run>.parquet, galleries/<run>.safetensors
"""

for part in parts("predict", STUDY.runs()):

    rule:
        name:
            part.name
        input:
            data=prepared_splits,
            pretrained=pretraining,
            hub=part.hub,
            starts=part.starts,
            checkpoints=part.checkpoints,
        output:
            predictions=part.files(PREDICTIONS),
            galleries=part.files(GALLERY),
        log:
            f"{LOGS}/predict/{part.title}.log",
        benchmark:
            f"{LOGS}/predict/{part.title}.tsv"
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
            evaluate=study_digest("evaluate", "reduced"),
            flags=as_flags,
            code=code_id("eqadapt.commands.predict"),
        message:
            "predict {wildcards}"
        shell:
            'python -m eqadapt predict --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
            " {params.flags} 2>&1 | tee {log}"


if STUDY.config["transfer"]:

    rule transfer:
        input:
            data=[
                file
                for name in STUDY.config["datasets"]
                for file in expand(
                    PREPARED_SPLIT, preparation=STUDY.preparation(name).name, split=SPLITS
                )
            ],
            checkpoints=run_files(CANONICALIZERS, CHECKPOINT),
        output:
            TRANSFER,
        log:
            f"{LOGS}/transfer.log",
        benchmark:
            f"{LOGS}/transfer.tsv"
        conda:
            ENVIRONMENT
        threads: JOBS["threads"]
        resources:
            gpu=JOBS["gpu"],
            mem_mb=JOBS["mem_mb"],
            runtime=JOBS["runtime"],
        params:
            recipes=digest_of([STUDY.recipe_hash(run) for run in CANONICALIZERS]),
            code=code_id("eqadapt.commands.transfer"),
        message:
            "canonicalizers on other data than they were trained on: {output}"
        shell:
            'python -m eqadapt transfer --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
            " 2>&1 | tee {log}"


rule predictions:
    input:
        run_files(STUDY.runs(), PREDICTIONS, GALLERY),
    message:
        "all predictions are made"


localrules:
    predictions,
