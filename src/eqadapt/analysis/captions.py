"""What each figure is called, shows and is drawn from. No matplotlib here."""

from __future__ import annotations

TITLES: dict[str, str] = {
    "accuracy_by_angle": "Accuracy against angle",
    "accuracy_by_angle_polar": "Accuracy around the circle",
    "upright_vs_cn_avg": "Upright accuracy against the average over the group",
    "chosen_poses": "Which poses are chosen",
    "training_curves": "Training",
    "gallery": "Inputs and their canonical forms",
    "accuracy_against_cost": "Accuracy against inference cost",
    "accuracy_against_training_size": "Accuracy against the number of training images",
    "accuracy_against_temperature": "From the best view to the mean of all",
}

CAPTIONS: dict[str, str] = {
    "accuracy_by_angle": "Test accuracy against the angle the input was turned by "
    "(counter-clockwise), mean and 95% interval over seeds (over test images with one seed, or "
    "where all are the same). Vertical lines: the angles of {group}, which its average is over.",
    "accuracy_by_angle_polar": "The same around the circle: upright inputs are at the top, and a "
    "method that does not care about the pose draws a circle. The outer circle is 100%.",
    "upright_vs_cn_avg": "Upright accuracy against the mean over the {group} poses, with 95% "
    "intervals. On the diagonal a method loses nothing when inputs are turned; where methods "
    "crowd, an inset magnifies them.",
    "chosen_poses": "Chosen pose minus applied pose, in percent of test images; a method that "
    "recovers every pose has 100 at 0°. Upright: inputs as they are. Multiples of 90°: pixels move "
    "without resampling. Other angles of {group}: inputs are resampled.",
    "accuracy_against_training_size": "Mean test accuracy over the {group} poses against the "
    "number of training images (logarithmic), mean and 95% interval over seeds. All sizes are "
    "tested on the same images.",
    "training_curves": "Loss of the task, prior loss, and on the validation images accuracy "
    "upright and over {group} (methods with a group) and the share of upright images left upright. "
    "Mean and range over seeds.",
    "accuracy_against_cost": "Accuracy over the {group} poses against passes of the network for "
    "one prediction, one point a method, with 95% intervals (over seeds, else over images; mostly "
    "smaller than the points). Methods of equal cost stand side by side. Named and joined: those "
    "that are ahead of all that cost less by more than half a point, searches behind a gate and "
    "posteriors over poses and classes aside.",
    "accuracy_against_temperature": "Views averaged with weights exp(-energy / temperature): the "
    "view of lowest energy on the left, the plain mean on the right, and the two spaces in which "
    "outputs can be averaged. Bands: 95% intervals over images.",
    "gallery": "Test images turned by the angle on top, and below them the same in the pose that a "
    "method chooses, first seed. A method that chooses one pose from the image gives the network "
    "just this canonical form. Of one that looks at several views first, it is the view that is "
    "chosen or weighs most; where their outputs are averaged, the prediction is of all of them. "
    "Frames: green, right prediction; red with a cross, wrong.",
}

# figure -> files of the results folder it is drawn from, module that draws it
SOURCES: dict[str, tuple[str, str]] = {
    "accuracy_by_angle": ("predictions/*.parquet", "eqadapt.analysis.figures.angles"),
    "accuracy_by_angle_polar": ("predictions/*.parquet", "eqadapt.analysis.figures.angles"),
    "upright_vs_cn_avg": ("predictions/*.parquet", "eqadapt.analysis.figures.scatter"),
    "chosen_poses": ("predictions/*.parquet", "eqadapt.analysis.figures.poses"),
    "training_curves": ("runs/*/history.csv", "eqadapt.analysis.figures.curves"),
    "accuracy_against_cost": ("predictions/*.parquet", "eqadapt.analysis.figures.cost"),
    "accuracy_against_temperature": (
        "temperatures/*.parquet",
        "eqadapt.analysis.figures.temperature",
    ),
    "accuracy_against_training_size": (
        "predictions/*.parquet",
        "eqadapt.analysis.figures.training_size",
    ),
    "gallery": ("galleries/*.safetensors", "eqadapt.analysis.figures.gallery"),
}
