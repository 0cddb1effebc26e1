"""Tensors that share the memory of a model's until either is written to, up to a known end."""

from __future__ import annotations

import gc
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


class CopyOnWrite:
    """Makes tensors that share memory in its block; at its end each that is still used has memory of its own."""

    def __init__(self) -> None:
        self._lent: dict[int, torch.UntypedStorage] = {}  # the models' own
        self._made: list[StorageWeakRef] = []

    def __enter__(self) -> CopyOnWrite:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not all(made.expired() for made in self._made):  # type: ignore[no-untyped-call]
            gc.collect()
        left = [torch.UntypedStorage._new_with_weak_ptr(made.cdata) for made in self._made]
        for storage in [*left, *self._lent.values()]:
            if storage is not None:
                storage.data_ptr()  # may be written to, so that the storage leaves what it shares

    def of(self, tensor: Tensor) -> Tensor:
        """Return a tensor that shares the memory of `tensor`, with all that its storage holds."""
        try:
            made = torch._lazy_clone(tensor.detach())
            self._made.append(StorageWeakRef(made.untyped_storage()))  # type: ignore[no-untyped-call]
        except RuntimeError:  # memory that others own, as a mapped file has
            made = placed(tensor, tensor.untyped_storage().clone())  # type: ignore[no-untyped-call]
        return made

    def of_model(self, model: nn.Module) -> dict[int, Tensor]:
        """Return tensors that share the memory of a model's parameters and buffers, by the ids of these.

        Tensors of one storage share one here. Those of other classes and layouts are left out.
        """
        storages: dict[int, torch.UntypedStorage] = {}
        found = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            bare = type(tensor) is Tensor and not tensor.__dict__ and not tensor.requires_grad
            if tensor.layout == torch.strided and (bare or type(tensor) is nn.Parameter) and not tensor.is_quantized:
                own = tensor.untyped_storage()
                key = own._cdata
                self._lent[key] = own
                storages[key] = storages.get(key) or self.of(tensor).untyped_storage()
                found[id(tensor)] = placed(tensor, storages[key])
        return found


def placed(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Return the tensor that lies in `storage` as `tensor` lies in its own."""
    return tensor.detach().new_empty(0).set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
