"""Raw archives to prepared splits, and pretrained weights; shared by all studies.

data/raw/{dataset}/source.json, verified.json -> data/prepared/{preparation}/{split}.safetensors
data/weights/{model}.safetensors

A preparation is a data set's name, with its options behind where they are not the data set's own.
"""


# An archive's name differs between the official release and mirrors, so the record stands for it.
# The code is not among the params: better code is no reason to download again.
rule download:
    output:
        record="data/raw/{dataset}/source.json",
    log:
        "logs/data/{dataset}-download.log",
    retries: 2
    conda:
        ENVIRONMENT
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        options=lambda w: folder_flag(w.dataset),
        state=lambda w: folder_state(w.dataset),
    message:
        "bring {wildcards.dataset} into data/raw"
    shell:
        "python -m eqadapt download --dataset {wildcards.dataset} {params.options}"
        " 2>&1 | tee {log}"


rule verify:
    input:
        record="data/raw/{dataset}/source.json",
    output:
        record="data/raw/{dataset}/verified.json",
    log:
        "logs/data/{dataset}-verify.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        code=code_id("eqadapt.commands.verify"),
    message:
        "verify the checksum of {wildcards.dataset}"
    shell:
        "python -m eqadapt verify --dataset {wildcards.dataset} --out {output.record} > {log} 2>&1"


rule prepare:
    input:
        record=raw_record,
    output:
        splits=expand(PREPARED_SPLIT, split=SPLITS, allow_missing=True),
    log:
        "logs/data/{preparation}-prepare.log",
    benchmark:
        "logs/data/{preparation}-prepare.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=8000,
        runtime=240,
    params:
        flags=preparation_flags,
        code=code_id("eqadapt.commands.prepare"),
    message:
        "prepare the splits of {wildcards.preparation}"
    shell:
        "python -m eqadapt prepare {params.flags} --out data/prepared/{wildcards.preparation}"
        " 2>&1 | tee {log}"


rule hub_weights:
    output:
        HUB_FILE,
    log:
        "logs/data/{model}-weights.log",
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=240,
    message:
        "fetch the pretrained weights of {wildcards.model}"
    shell:
        "python -m eqadapt weights --model {wildcards.model} --out {output} 2>&1 | tee {log}"


rule data:
    input:
        hub_files(),
        expand(
            PREPARED_SPLIT,
            preparation={STUDY.preparation(name).name: None for name in STUDY.config["datasets"]},
            split=SPLITS,
        ),
    message:
        "the data are prepared"


localrules:
    download,
    hub_weights,
    data,
