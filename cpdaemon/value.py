"""Immutable values, like `dataclasses` at a tenth of the import time."""

from collections.abc import Mapping


class Value:
    """A value that is compared, hashed, shown, copied and pickled by the fields that `__match_args__` names."""

    __match_args__: tuple[str, ...] = ()

    def _freeze(self, **fields: object) -> None:
        vars(self).update(fields)

    def _fields(self) -> tuple[object, ...]:
        fields = (getattr(self, name) for name in self.__match_args__)
        return tuple(dict(field) if isinstance(field, Mapping) else field for field in fields)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set: {type(self).__name__} is immutable, make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} cannot be deleted: {type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Value)
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        fields = zip(self.__match_args__, self._fields(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"

    def __reduce__(self) -> tuple[type["Value"], tuple[object, ...]]:
        return type(self), self._fields()
