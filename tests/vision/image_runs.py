"""A run on a folder of pictures for tests with real processes."""

from largebatch.recipes.optimizers import Lamb
from largebatch.schedules import Schedule
from largebatch.train.run import Run, Stage
from largebatch.vision.classification import ImageClassification


def pictures(data: str = "pictures", steps: int = 12) -> Run[ImageClassification, Lamb]:
    """A narrow residual network, cropped and mirrored pictures, two microbatches a step; an epoch is 2.5 steps."""
    stage = Stage(name="only", global_batch_samples=8, steps=steps, peak_lr=0.02, schedule=Schedule(warmup_steps=2))
    task = ImageClassification(data=data, network="resnet9", width=4, image_size=16, norm_group=4)
    return Run(
        task=task,
        stages=(stage,),
        optimizer=Lamb(),
        precision="fp32",
        microbatch=4,
        checkpoint_every_steps=2,
        evaluate_every_steps=5,
        layers_every_steps=3,
    )
