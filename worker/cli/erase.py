"""The command line of `worker erase`."""

import json
from typing import Final

import click

from publisher import parameters
from publisher.command_line import Command, Options, json_option
from publisher.values import counted
from worker.cli.agreement import agreed
from worker.cli.service_options import EPILOG, asking, url_option
from worker.operations.service_client import Service

_ERASE: Final = """\
Erase a person for good, by the subject that events name, such as a user's id: the rows of every table are deleted, rejected
messages about the person too, and receipts forget whose they were. The subject is kept in a list in the bucket, so that no
replay and no restore brings the person back.

What was written before stays in the bucket until its generation's retention ends (RETENTION_DAYS), and in the topic and the
subscription for as long as they retain messages. Rejected messages that cannot be read are not searched.

  python -m worker erase 5 --yes
"""


@click.command("erase", cls=Command, help=_ERASE, epilog=EPILOG)
@click.argument("subject", metavar="USER_ID", type=parameters.SUBJECT)
@click.option("--yes", is_flag=True, help="do it; without this, only say what would be done")
@url_option
@json_option
@asking
async def command(service: Service, options: Options) -> int:
    """Erase the person, and print what was removed."""
    what = f"this would erase {options.subject} for good, also from every later restore and replay"
    if not agreed(what, yes=options.yes):
        return 1
    removed = await service.erase(options.subject)
    if options.json:
        print(json.dumps(removed))
    else:
        was = "erased" if removed["existed"] else "was not there, and will not come back"
        about = ", ".join(counted(removed[f"{name}s"], name) for name in ("row", "receipt", "rejection"))
        print(f"{options.subject} {was}; {about} spoke of it")
    return 0
