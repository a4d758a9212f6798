"""Where the commands print."""

from prune_fe.cli.output import print_tables, say_next
from prune_fe.report.tables import Table


def test_the_next_command_can_be_pasted(capsys):
    say_next("score", "--model", "my model", "--samples", 5)
    assert capsys.readouterr().out == "next: prune-fe score --model 'my model' --samples 5\n"


def test_every_table_is_followed_by_an_empty_line(capsys):
    table = Table("Heights", {"metres": ".1f"}, {"tower": {"metres": [12.0]}}, "measured")
    print_tables([table, table])
    printed = capsys.readouterr().out
    assert printed.count("Heights") == printed.count("12.0") == printed.count("measured") == 2
    assert printed.endswith("\n\n")
