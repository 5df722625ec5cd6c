"""Live models and process groups: what the layers below `wfcast.torch` need of torch.

The parameters of a module and sums over them, states in and out of it, and the processes of
torch.distributed. Nothing here jumps, fits or judges. Importing it imports torch, so that is done
on use.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "live models need torch, which is not installed (the extra 'torch' of wfcast)",
        name="torch",
    ) from error
