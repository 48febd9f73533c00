"""Frozen backbones to predictions of test-time methods, by way of one cache of their outputs.

data/prepared/{dataset} -> data/orbits/<study>/{dataset}-{backbone}-{group}-{split}.safetensors
    (canonicalizers' scores: data/orbits/<study>/poses/<run>-{split}.safetensors)
    -> results/<study>/predictions/<run>.parquet, runs/<run>/run.json, temperatures/*.parquet
    -> results/<study>/latency.csv
"""


rule orbits:
    input:
        data=prepared_splits,
        pretrained=pretraining,
        hub=lambda w: hub_files([frozen_run(w)]),
    output:
        caches=expand(ORBITS, group=STUDY.config["groups"], split=SPLITS, allow_missing=True),
    log:
        f"{LOGS}/orbits/{{dataset}}-{{backbone}}.log",
    benchmark:
        f"{LOGS}/orbits/{{dataset}}-{{backbone}}.tsv"
    conda:
        ENVIRONMENT
    threads: JOBS["threads"]
    resources:
        gpu=JOBS["gpu"],
        mem_mb=JOBS["mem_mb"],
        runtime=JOBS["runtime"],
    params:
        recipe=lambda w: STUDY.outputs_hash(frozen_run(w)),
        images=digest_of([PLAN.settings[key] for key in ("images", "dtype")]),
        flags=as_flags,
        code=code_id("eqadapt.commands.orbits"),
    message:
        "cache the orbits of {wildcards}"
    shell:
        'python -m eqadapt orbits --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
        " {params.flags} 2>&1 | tee {log}"


# One job a group, also where several backbones share the canonicalizers.
rule poses:
    input:
        data=prepared_splits,
        canonicalizers=lambda w: run_files(canonicalizers(w), CHECKPOINT),
    output:
        poses=expand(
            POSES,
            regime="frozen",
            method=STUDY.config["methods"],
            seed=STUDY.config["seeds"],
            split=SPLITS[1:],
            allow_missing=True,
        ),
    log:
        f"{LOGS}/poses/{{dataset}}-{{backbone}}-{{group}}.log",
    benchmark:
        f"{LOGS}/poses/{{dataset}}-{{backbone}}-{{group}}.tsv"
    conda:
        ENVIRONMENT
    threads: JOBS["threads"]
    resources:
        gpu=JOBS["gpu"],
        mem_mb=JOBS["mem_mb"],
        runtime=JOBS["runtime"],
    params:
        images=digest_of([PLAN.settings["images"], study_digest("test_time.mirrored")]),
        flags=as_flags,
        code=code_id("eqadapt.commands.methods"),
    message:
        "score the poses of {wildcards}"
    shell:
        'python -m eqadapt methods --poses --study "$STUDY" --results "$RESULTS"'
        ' --scratch "$SCRATCH" {params.flags} 2>&1 | tee {log}'


# One rule a cell: what a cell leaves depends on it, because what has no group is kept once. Numbers
# tell them apart: names of data sets and backbones joined by underscores need not.
for number, cell in enumerate(PLAN.cells()):

    rule:
        name:
            f"methods_{number}"
        input:
            data=prepared_splits(cell),
            caches=expand(ORBITS, split=SPLITS, **vars(cell)),
            canonicalizers=run_files(canonicalizers(cell), CHECKPOINT, RECORD),
            poses=pose_files(cell),
            settings=PLAN.settings.files,
        output:
            predictions=run_files(PLAN.runs(cell), PREDICTIONS),
            records=run_files(own_records(cell), RECORD),
            temperatures=f"{RESULTS}/temperatures/{cell.run('boltzmann').stem}.parquet",
        log:
            f"{LOGS}/methods/{cell.dataset}-{cell.backbone}-{cell.group}.log",
        benchmark:
            f"{LOGS}/methods/{cell.dataset}-{cell.backbone}-{cell.group}.tsv"
        conda:
            ENVIRONMENT
        threads: JOBS["threads"]
        resources:
            gpu=JOBS["gpu"],
            mem_mb=JOBS["mem_mb"],
            runtime=JOBS["runtime"],
        params:
            flags=as_flags(vars(cell)),
            settings=digest_of(PLAN.settings.values),
            seeds=study_digest("seeds", "reduced", "test_time.mirrored"),
            code=code_id("eqadapt.commands.methods"),
        message:
            f"run the test-time methods of {cell.dataset}, {cell.backbone}, {cell.group}"
        shell:
            'python -m eqadapt methods --study "$STUDY" --results "$RESULTS" --scratch "$SCRATCH"'
            " {params.flags} 2>&1 | tee {log}"


# All cores, so that nothing else runs beside it: it measures time. On a cluster, where the number is
# not known here, those of any job.
rule latency:
    input:
        predictions=run_files(PLAN.all_runs(), PREDICTIONS),
    output:
        latency=f"{RESULTS}/{outputs.LATENCY}",
    log:
        f"{LOGS}/latency.log",
    conda:
        ENVIRONMENT
    threads: workflow.resource_settings.cores or JOBS["threads"]
    resources:
        gpu=JOBS["gpu"],
        mem_mb=JOBS["mem_mb"],
        runtime=JOBS["runtime"],
    params:
        code=code_id("eqadapt.commands.methods"),
    message:
        "time the test-time methods"
    shell:
        'python -m eqadapt methods --latency --study "$STUDY" --results "$RESULTS"'
        ' --scratch "$SCRATCH" 2>&1 | tee {log}'


rule predictions:
    input:
        run_files(PLAN.all_runs(), PREDICTIONS),
    message:
        "all predictions are made"


localrules:
    predictions,
