"""`softlinalg export`: a backbone as an ONNX file, run beside the model before it is called good."""

from __future__ import annotations

import argparse

from softlinalg._cli_options import CommandError

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Build the model, load its weights if there are some, export it, and print how near the file is."""
    try:
        import softlinalg.torch as models
        from softlinalg.torch.export import export_onnx
    except ImportError as error:
        message = f'export needs PyTorch ({error.name} is missing). Run pip install "softlinalg[onnx]".'
        raise CommandError(message) from error
    build = getattr(models, arguments.model)
    model = build(num_classes=arguments.classes, img_size=arguments.image_size, published=arguments.published)
    if arguments.weights is not None:
        print(models.load_published_weights(model, arguments.weights))
    else:
        print("no weights given: the file has random ones")
    try:
        report = export_onnx(model, arguments.output)
    except ImportError as error:
        raise CommandError(str(error)) from error
    print(report)
