"""``setr-fast plan``: what ``plan`` works out, as text."""

from __future__ import annotations

from setr_fast.errors import ConfigError
from setr_fast.models.catalog import model_spec
from setr_fast.models.spec import ModelSpec
from setr_fast.train.devices import GIB, Device, parse_gpus
from setr_fast.train.options import TrainConfig
from setr_fast.train.plan import Layout, Plan, fits, make_plan, ways_to_fit

PER_HOST = 8


def plan_command(
    model: str,
    *,
    classes: int,
    crop: tuple[int, int],
    batch: int,
    gpus: str,
    precision: str,
    fsdp: bool,
    replicas: int,
    reshard: str,
    optimizer: str,
    config: TrainConfig,
) -> bool:
    """Print the plan of a training and, where it does not fit, what makes it fit; return whether it does.

    ``batch`` is what each GPU works through per step.
    """
    count, device = parse_gpus(gpus)
    if replicas < 1 or count % replicas:
        raise ConfigError(f"fsdp.replicas: must divide the number of GPUs ({count}), got {replicas}")
    spec = model_spec(model, classes, crop)
    layout = Layout(
        batch=batch * count,
        gpus=count,
        shards=count // replicas if fsdp else 1,
        per_host=PER_HOST,
        always=reshard == "always",
        bf16=precision == "bf16",
        averaged=config.ema > 0,
        adam=optimizer == "adamw",
    )
    plan = make_plan(spec, config, layout, device)
    print("\n".join(_lines(spec, batch, layout, device, plan)))
    if fits(plan, device):
        return True
    print("\nit does not fit; options that lower the memory, the fastest that fits first:")
    ways = ways_to_fit(spec, config, layout, device)
    for name, way in ways[:6]:
        verdict = "fits" if fits(way, device) else "does not fit"
        print(f"  {name:72s} {way.bytes / GIB:7.1f} GiB  {way.seconds:6.3f} s  {verdict}")
    if not any(fits(way, device) for _, way in ways):
        print("  none is enough: take a smaller --batch or --crop, or larger GPUs")
    return False


def _lines(spec: ModelSpec, batch: int, layout: Layout, device: Device, plan: Plan) -> list[str]:
    size = "x".join(map(str, spec.image_size))
    spread = "FSDP" if layout.shards > 1 else "replicas" if layout.gpus > 1 else "alone"
    kind = "bf16" if layout.bf16 else "fp32"
    head = f"{spec.name}, {size}, {batch} pictures per GPU and step, {kind}, {layout.gpus} x {device.name}"
    lines = [f"{head} ({device.memory / GIB:.0f} GiB), {spread}", ""]
    after = "   (take the place of activations)"
    for name, value in plan.parts.items():
        if value or name == "gradients":
            lines.append(f"  {name:14s} {value / GIB:8.2f} GiB" + ("" if value else after))
    lines += [f"  {'in all':14s} {plan.bytes / GIB:8.2f} GiB", ""]
    lines.append(f"  step           {plan.seconds:8.3f} s   ({layout.batch / plan.seconds:.0f} pictures/s)")
    lines.append(f"  arithmetic     {plan.compute:8.3f} s")
    if plan.sent:
        sent = f"({plan.sent / GIB:.2f} GiB sent by each GPU)"
        lines.append(f"  communication  {plan.communication:8.3f} s   {sent}")
    return lines
