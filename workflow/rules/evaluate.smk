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


rule predictions:
    input:
        run_files(STUDY.runs(), PREDICTIONS, GALLERY),
    message:
        "all predictions are made"


localrules:
    predictions,
