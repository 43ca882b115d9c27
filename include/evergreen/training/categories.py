"""Categories of text columns for trees: found in the training data, and part of the model's file.

pyarrow is imported where it is used: Airflow's processes import this package, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from evergreen.training.rows import TrainingRows

if TYPE_CHECKING:
    from pathlib import Path

    import lightgbm
    import pyarrow as pa
    import xgboost

UnseenRule = Literal["error", "missing", "other"]
UNSEEN_RULES: tuple[str, ...] = get_args(UnseenRule)
OTHER = "other"
"""The category of rare values, and of unseen ones by the rule of this name."""
UNSEEN_ATTRIBUTE = "unseen_categories"
"""Where a model's file holds the rule: an attribute of XGBoost's, a line in the head of LightGBM's."""


class Categories:
    """The categories of columns, and what becomes of a value that has none.

    Args:
        values: the categories of each column, in the order of their codes.
        unseen: `error` refuses a value that is no category; `missing` takes it for a missing one; `other` for the
            category `other`, which each column then has.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], unseen: UnseenRule = "error"):
        if unseen not in UNSEEN_RULES:
            raise ValueError(f"unseen is {unseen!r}, not one of {', '.join(UNSEEN_RULES)}")
        self.unseen = unseen
        self.values = {
            name: (*categories, *([OTHER] if unseen == OTHER and OTHER not in categories else []))
            for name, categories in values.items()
        }

    @classmethod
    def find(
        cls, rows: TrainingRows, columns: Sequence[str], unseen: UnseenRule = "error", min_rows: int = 1
    ) -> Categories:
        """Return the values of text columns that have at least `min_rows` rows, in alphabetical order.

        Rarer ones are unseen to the model. With `error`, `min_rows` must be 1.

        Raises:
            ValueError: a column is not text, or has no category.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import types

        if unseen == "error" and min_rows > 1:
            raise ValueError("rare values would be errors: choose unseen='missing' or 'other'")
        counts: dict[str, dict[str, int]] = {name: {} for name in columns}
        for table in rows.read(columns):
            for name in columns:
                values = _decode_dictionary(table[name])
                if not any(check(values.type) for check in (types.is_string, types.is_large_string, types.is_null)):
                    raise ValueError(f"{name} is {values.type}, not text: trees take it as it is")
                for item in pc.value_counts(values.cast(pa.string()).drop_null()).to_pylist():
                    counts[name][item["values"]] = counts[name].get(item["values"], 0) + item["counts"]
        frequent_values = {
            name: sorted(value for value, n in value_counts.items() if n >= min_rows)
            for name, value_counts in counts.items()
        }
        # The libraries learn from no column without categories.
        if unseen != OTHER and (without_category := [name for name, values in frequent_values.items() if not values]):
            if all_null := [name for name in without_category if not counts[name]]:
                raise ValueError(
                    f"{', '.join(all_null)} has no value in any row to learn from, so no category: see whether its "
                    "view has rows of these keys before these times, leave it out of the features, or choose "
                    "unseen='other'"
                )
            raise ValueError(
                f"{', '.join(without_category)} has no value in {min_rows:,} rows or more, so no category: leave it "
                "out of the features, lower min_rows, or choose unseen='other'"
            )
        return cls(frequent_values, unseen)

    def encode(self, table: pa.Table) -> pa.Table:
        """Return `table` with these columns as dictionaries (as categoricals in pandas), as XGBoost takes them.

        Raises:
            ValueError: a value is no category, and `unseen` is `error`.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        for name, categories in self.values.items():
            if name not in table.column_names:
                continue
            values = _decode_dictionary(table[name]).cast(pa.string()).combine_chunks()
            dictionary = pa.array(categories, pa.string())
            codes = pc.index_in(values, value_set=dictionary, skip_nulls=True)
            is_unseen = pc.and_(pc.is_null(codes), pc.is_valid(values))
            if self.unseen == "error" and pc.any(is_unseen).as_py():
                raise ValueError(f"{name} has values that are no category, such as {pc.filter(values, is_unseen)[0]}")
            if self.unseen == OTHER:
                codes = pc.if_else(is_unseen, pa.scalar(categories.index(OTHER), pa.int32()), codes)
            column = pa.DictionaryArray.from_arrays(codes, dictionary)
            table = table.set_column(table.column_names.index(name), name, column)
        return table

    def save_xgboost(self, booster: xgboost.Booster, file: Path) -> None:
        """Write a booster that has learned from encoded tables, with the rule for unseen values, to `model.ubj`."""
        booster.set_attr(**{UNSEEN_ATTRIBUTE: self.unseen})
        booster.save_model(file)

    def save_lightgbm(self, booster: lightgbm.Booster, file: Path) -> None:
        """Write a booster that has learned from encoded tables, with the rule for unseen values, to `model.lgb`.

        LightGBM ignores the line with the rule.
        """
        head, version, rest = booster.model_to_string().partition("version=v4\n")
        if not version:
            raise ValueError("this version of LightGBM writes files of another version than v4, which is not supported")
        file.write_text(f"{head}{version}{UNSEEN_ATTRIBUTE}={self.unseen}\n{rest}", encoding="utf-8")


def _decode_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of a column that may be encoded as a dictionary."""
    from pyarrow import types

    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
