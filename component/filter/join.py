"""Verdict tables of a whole data set → a keep-list: rules, thresholds, and duplicates over all files, by DuckDB.

DuckDB joins tables that are larger than its memory, so one machine is enough for hundreds of millions of pairs.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from component.filter.output import REASONS
from component.filter.rules import FilterRules
from component.filter.verdicts import COLUMNS, OK
from component.ground.files import new_file, scratch_folder
from component.ground.optional import import_optional
from component.ground.output_paths import require_not_an_input
from component.image.perceptual_hash import MAX_DISTANCE
from component.pairs.keep_list import SCHEMA
from component.pairs.parquet import import_pyarrow

# Two hashes that differ in at most 3 bits agree in at least 2 of 5 bands, 25 or 26 bits. One of 4 bands would do too,
# but in 16 bits, one in 65,536 of all other hashes agrees: too many to compare in a large data set.
_BANDS = [range(0, 13), range(13, 26), range(26, 39), range(39, 52), range(52, 64)]
_MASKS = [
    sum(1 << bit for band in bands for bit in band) for bands in itertools.combinations(_BANDS, 5 - MAX_DISTANCE)
]
_VECTORS = 60  # of 2,048 rows, in a row group of the keep-list
_ROW_BITS = 32  # a position is the number of the file, and the row in it


def write_keep_list(
    verdicts: Sequence[str],
    out_file: str,
    rules: FilterRules,
    min_score: float | None = None,
    memory_limit: str | None = None,
) -> dict[str, int]:
    """Write the keep-list of all pairs in some verdict tables.

    As in `judge_pairs`, the rules come first, then the score, then duplicates of the pairs that are kept; the first
    stays, by the names of the files and the rows in them.

    Args:
        verdicts: Parquet files, see `component.filter.verdicts`.
        out_file: Parquet, see `component.pairs.keep_list`.
        memory_limit: DuckDB's, such as 16GB; None: 80 % of the memory that this process may use.

    Returns:
        Reason → number of pairs; "" for those that are kept.

    Raises:
        ValueError: a table does not hold verdicts, a file occurs in two of them, `out_file` is one of them, or there
            are no scores, or scores of several models, although `min_score` is given.
        ImportError: DuckDB or pyarrow is not installed.
    """
    duckdb = import_optional("duckdb", "joining verdicts")
    require_not_an_input(out_file, verdicts)
    with scratch_folder(out_file) as folder:
        with duckdb.connect(os.path.join(folder, "pairs.db")) as database:
            try:
                database.execute("SET preserve_insertion_order = false")
                if memory_limit:
                    database.execute(f"SET memory_limit = {_quoted(memory_limit)}")
                return _Join(database, list(verdicts)).write(out_file, rules, min_score)
            except duckdb.Error as error:
                raise ValueError(f"DuckDB cannot join the verdicts: {str(error).splitlines()[0]}") from None


class _Join:
    """The tables of one join: `files`; `pairs`, of all pairs; `dropped`, of those that are duplicates."""

    def __init__(self, database: Any, verdicts: list[str]):
        self._database, self._verdicts = database, verdicts

    def write(self, out_file: str, rules: FilterRules, min_score: float | None) -> dict[str, int]:
        run = self._database.execute
        self._number_files()
        if min_score is not None:
            self._require_scores()
        reasons = [*REASONS, *(name for (name,) in self._query("SELECT DISTINCT status FROM verdicts"))]
        run(f"CREATE TYPE reason AS ENUM ({', '.join(map(_quoted, dict.fromkeys(['', *reasons])))})")
        run(f"""
            CREATE TABLE pairs AS
            SELECT (number << {_ROW_BITS}) + row AS position, {_reason(rules, min_score)}::reason AS reason,
                image, text_digest, image_digest, phash
            FROM verdicts JOIN files USING (file)
        """)
        run("CREATE TABLE dropped (position BIGINT, reason reason)")
        run("CREATE VIEW good AS SELECT * FROM pairs ANTI JOIN dropped USING (position) WHERE reason = ''")
        if rules.exact_duplicates:
            self._drop_exact_duplicates()
        if rules.near_duplicates:
            self._drop_near_duplicates()
        run("""
            CREATE VIEW result AS
            SELECT position, coalesce(dropped.reason, pairs.reason) AS reason
            FROM pairs LEFT JOIN dropped USING (position)
        """)
        self._write(out_file)
        return dict(self._query("SELECT reason::VARCHAR, count(*) FROM result GROUP BY ALL"))

    def _query(self, query: str) -> list[tuple]:
        return self._database.execute(query).fetchall()

    def _number_files(self) -> None:
        # DuckDB takes no parameter in a view.
        listed = ", ".join(map(_quoted, self._verdicts))
        self._database.execute(f"CREATE VIEW verdicts AS SELECT {', '.join(COLUMNS)} FROM read_parquet([{listed}])")
        self._database.execute("""
            CREATE TABLE files AS
            SELECT file, min(digest) AS digest, count(*) AS rows, max(row) AS last,
                row_number() OVER (ORDER BY file) - 1 AS number
            FROM verdicts GROUP BY file
        """)
        twice = self._query("SELECT file FROM files WHERE rows <> last + 1 ORDER BY file LIMIT 1")
        if twice:
            raise ValueError(f"{twice[0][0]} occurs in two of the verdict tables. Give the newer one alone.")

    def _require_scores(self) -> None:
        without = f"SELECT file FROM verdicts WHERE status = '{OK}' AND score IS NULL LIMIT 1"
        if found := self._query(without):
            raise ValueError(f"the verdicts on {found[0][0]} have no score: judge it with a CLIP model.")
        models = self._query("SELECT model, min(file) FROM verdicts WHERE model IS NOT NULL GROUP BY model LIMIT 2")
        if len(models) > 1:
            raise ValueError(
                f"the scores of {models[0][1]} and {models[1][1]} are of different models: judge all files with one."
            )

    def _drop_exact_duplicates(self) -> None:
        self._database.execute("""
            INSERT INTO dropped
            SELECT position, 'exact_duplicate'
            FROM good JOIN (
                SELECT text_digest, image_digest, min(position) AS first FROM good GROUP BY ALL HAVING count(*) > 1
            ) USING (text_digest, image_digest)
            WHERE position <> first
        """)

    def _drop_near_duplicates(self) -> None:
        """Drop the images that look like an earlier one that is kept."""
        run = self._database.execute
        # Equal hashes first, which may be many: after that, each hash stands for its first image.
        run("""
            CREATE TABLE hashes AS
            SELECT phash, min(position) AS first, arg_min(image, position) AS image, min(image) <> max(image) AS shared
            FROM good GROUP BY phash
        """)
        run("CREATE TABLE near (later BIGINT, earlier BIGINT)")
        for mask in _MASKS:
            run(f"""
                INSERT INTO near
                SELECT a.first, b.first
                FROM hashes a JOIN hashes b ON (a.phash & {mask}) = (b.phash & {mask})
                WHERE a.first > b.first AND bit_count(xor(a.phash, b.phash)) <= {MAX_DISTANCE}
            """)
        near = run("SELECT DISTINCT later, earlier FROM near ORDER BY later, earlier").fetchnumpy()
        dropped: set[int] = set()
        for later, earlier in zip(near["later"].tolist(), near["earlier"].tolist(), strict=True):
            if earlier not in dropped:
                dropped.add(later)
        firsts = import_pyarrow().table({"first": np.array(sorted(dropped), np.int64)})
        self._database.register("dropped_hashes", firsts)
        run("""
            INSERT INTO dropped
            SELECT position, 'near_duplicate'
            FROM good JOIN (
                SELECT phash, image AS owner, first IN (SELECT first FROM dropped_hashes) AS gone
                FROM hashes WHERE shared OR gone
            ) USING (phash)
            WHERE gone OR image <> owner
        """)

    def _write(self, out_file: str) -> None:
        pyarrow = import_pyarrow()
        files = self._query("SELECT file, digest FROM files ORDER BY number")
        names, digests = (pyarrow.array([file[column] for file in files], "string") for column in (0, 1))
        rows = self._database.execute("SELECT position, reason = '' AS keep FROM result ORDER BY position")
        schema = pyarrow.schema(SCHEMA)
        with (
            new_file(out_file, "wb") as file,
            pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            while len(chunk := rows.fetch_df_chunk(_VECTORS)):
                position = chunk["position"].to_numpy()
                number = position >> _ROW_BITS
                columns = [names.take(number), digests.take(number), position % 2**_ROW_BITS, chunk["keep"].to_numpy()]
                writer.write_table(pyarrow.table(columns, schema=schema))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _reason(rules: FilterRules, min_score: float | None) -> str:
    """The SQL expression of why a pair is dropped, before duplicates."""
    rows = [
        (True, "status = 'empty_text'", "'empty_text'"),
        (rules.min_text, "text_length < {}", "'short_text'"),
        (rules.max_text, "text_length > {}", "'long_text'"),
        (rules.min_chinese, "chinese_share < {}::FLOAT", "'little_chinese'"),
        (True, f"status <> '{OK}'", "status"),
        (rules.min_side, "least(width, height) < {}", "'small'"),
        (rules.max_aspect, "greatest(width, height) > {}::DOUBLE * least(width, height)", "'long_and_narrow'"),
        (min_score, "isnan(score) OR score < {}::FLOAT", "'dissimilar'"),
    ]
    cases = (f"WHEN {test.format(value)} THEN {reason}" for value, test, reason in rows if value is not None)
    return f"(CASE {' '.join(cases)} ELSE '' END)"
