"""The rules: neighbouring noise levels -> the coefficients of one step, for all evaluations of a run at once.

A rule fills one linear recurrence that covers every solver. At evaluation k, with z_k the sample and c_{k-1}
a sample kept from before,

    m_k     = convert[k] . [z_k, model output]
    c_k     = keep[k]    . [z_k, c_{k-1}, m_k, m_{k-1}, m_{k-2}, m_{k-3}, m_{k-4}, noise]
    z_{k+1} = advance[k] . [z_k, c_{k-1}, m_k, m_{k-1}, m_{k-2}, m_{k-3}, m_{k-4}, noise]

A rule divides without looking: where a run has no solution (equal neighbouring levels, noise predicted from
pure noise) its rows are not finite, and export leaves that step count out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parure.solvers.grid import Levels, Values

Prediction = Literal["epsilon", "v_prediction", "sample"]
Option = float | int | str | bool
Options = Mapping[str, Option]

SAMPLE, KEPT, OUTPUT, NOISE = 0, 1, 2, 7  # columns; OUTPUT + i is m_{k-i}
HISTORY = NOISE - OUTPUT
COLUMNS = NOISE + 1


@dataclass(frozen=True)
class Rows:
    """Coefficients of K evaluations, float64.

    input_scale [K]: what z_k is multiplied with before the U-Net sees it. denoise [K, 2]: the predicted
    picture x0 from (z_k, model output). convert [K, 2], keep and advance [K, COLUMNS]: the recurrence above;
    a row of `keep` that is all zero keeps nothing.
    """

    input_scale: Values
    denoise: Values
    convert: Values
    keep: Values
    advance: Values


def ddim(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """DDIM, Eq. 12 and 16 of Song et al. 2020; diffusers' `DDIMScheduler` without clipping. Option: eta."""
    alpha, sigma = _variance_preserving(levels.sigma)
    next_alpha, next_sigma = _variance_preserving(levels.next_sigma)
    deviation = float(options["eta"]) * next_sigma / sigma * np.sqrt(1 - (alpha / next_alpha) ** 2)
    direction = np.sqrt(next_sigma**2 - deviation**2)
    x0 = _x0(prediction, alpha, sigma)
    return _single_step(
        levels, x0, sample=direction / sigma, picture=next_alpha - direction * alpha / sigma, noise=deviation
    )


def plms(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """PLMS, Eq. 9 and 12 of Liu et al. 2022 (PNDM); diffusers' `PNDMScheduler` with `skip_prk_steps`.

    A DDIM step along a linear multistep mean of the outputs. Evaluation 1 repeats the first step from z_0,
    with the mean of both outputs, and then leaves the history; so K = steps + 1 from 2 steps on.
    """
    alpha, sigma = _variance_preserving(levels.sigma)
    next_alpha, next_sigma = _variance_preserving(levels.next_sigma)
    again = np.arange(len(sigma)) == 1
    mean = np.tile(np.array([55, -59, 37, -9, 0]) / 24, (len(sigma), 1))
    warm_up = [[24, 0, 0, 0, 0], [12, 12, 0, 0, 0], [36, 0, -12, 0, 0], [46, -32, 0, 10, 0], [55, -59, 37, 0, -9]]
    mean[: len(warm_up)] = np.array(warm_up)[: len(sigma)] / 24
    noise = _noise(prediction, alpha, sigma)
    along = next_sigma - next_alpha * sigma / alpha
    from_sample = next_alpha / alpha + along * noise[:, 0]
    advance, keep = _rows(levels), _rows(levels)
    keep[0, SAMPLE] = 1
    advance[:, SAMPLE] = np.where(again, 0, from_sample)
    advance[:, KEPT] = np.where(again, from_sample, 0)
    advance[:, OUTPUT:NOISE] = (along * noise[:, 1])[:, None] * mean
    reached = _variance_preserving(np.where(again, levels.next_sigma, levels.sigma))
    x0 = _x0(prediction, *reached)
    return Rows(np.ones_like(sigma), denoise=x0, convert=_unchanged(levels), keep=keep, advance=advance)


def lcm(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """Multistep consistency sampling, Luo et al. 2023; diffusers' `LCMScheduler`. Option: timestep_scaling."""
    alpha, sigma = _variance_preserving(levels.sigma)
    next_alpha, next_sigma = _variance_preserving(levels.next_sigma)
    time, data = levels.timesteps * float(options["timestep_scaling"]), 0.5
    c_skip, c_out = data**2 / (time**2 + data**2), time / np.hypot(time, data)
    denoise = c_out[:, None] * _x0(prediction, alpha, sigma)
    denoise[:, 0] += c_skip
    next_alpha[-1], next_sigma[-1] = 1, 0
    return _single_step(levels, denoise, sample=np.zeros_like(alpha), picture=next_alpha, noise=next_sigma)


def euler(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """Algorithm 2 of Karras et al. 2022 without churn; diffusers' `EulerDiscreteScheduler`."""
    return _towards_x0(levels, prediction, down=levels.next_sigma, up=np.zeros_like(levels.sigma))


def euler_ancestral(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """k-diffusion's `sample_euler_ancestral`; diffusers' `EulerAncestralDiscreteScheduler`."""
    up = levels.next_sigma * np.sqrt(1 - (levels.next_sigma / levels.sigma) ** 2)
    return _towards_x0(levels, prediction, down=np.sqrt(levels.next_sigma**2 - up**2), up=up)


def dpmpp_2m(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """Algorithm 2 of Lu et al. 2022 (DPM-Solver++); diffusers' `DPMSolverMultistepScheduler`.

    Options: lower_order_final (a last step of first order in runs under 15 steps), euler_at_final (in every
    run), heun (its second-order correction instead of the midpoint's).
    """
    count = len(levels.sigma)
    _, sigma = _variance_preserving(levels.sigma)
    next_alpha, next_sigma = _variance_preserving(levels.next_sigma)
    h = np.log(levels.sigma / levels.next_sigma)  # lambda = -log(sigma / alpha)
    growth = np.expm1(-h)
    correction = -(growth / h + 1) if options["heun"] else growth / 2
    second = np.arange(count) > 0
    if options["euler_at_final"] or (options["lower_order_final"] and count < 15) or next_sigma[-1] == 0:
        second[-1] = False
    r = np.where(second, np.roll(h, 1) / h, 1)
    D1 = np.where(second, correction, 0) / r
    x0 = _x0(prediction, *_variance_preserving(levels.sigma))
    advance = _rows(levels)
    advance[:, SAMPLE] = next_sigma / sigma
    advance[:, OUTPUT] = -next_alpha * (growth + D1)
    advance[:, OUTPUT + 1] = next_alpha * D1
    return Rows(np.ones_like(sigma), denoise=x0, convert=x0, keep=_rows(levels), advance=advance)


def unipc(levels: Levels, prediction: Prediction, options: Options) -> Rows:
    """UniPC with B(h), Algorithms 5 to 8 of Zhao et al. 2023; diffusers' `UniPCMultistepScheduler`.

    c_k is the sample that the corrector makes of z_k once m_k is known, with m_k from the uncorrected z_k.
    Options: order (1 to 3), lower_order_final, bh1 (B(h) = h instead of e^h - 1), predict_x0 (m is the picture,
    else the noise), disable_corrector (comma-separated evaluations after which there is no correction).
    """
    count = len(levels.sigma)
    k = np.arange(count)
    order = np.minimum(int(options["order"]), k + 1)
    if options["lower_order_final"]:
        order = np.minimum(order, count - k)
    predictor, corrector = _unipc_weights(levels, order, bool(options["bh1"]), bool(options["predict_x0"]))
    alpha, sigma = _variance_preserving(levels.sigma)
    x0 = _x0(prediction, alpha, sigma)
    keep, advance = _rows(levels), _rows(levels)
    disabled = [int(index) for index in str(options["disable_corrector"]).split(",") if index]
    corrected = (k > 0) & ~np.isin(k - 1, disabled)
    keep[~corrected, SAMPLE] = 1
    keep[corrected, KEPT : OUTPUT + 4] = corrector[:-1][corrected[1:]]
    advance[:] = predictor[:, :1] * keep
    advance[:, OUTPUT : OUTPUT + 3] += predictor[:, 2:]
    convert = x0 if options["predict_x0"] else _noise(prediction, alpha, sigma)
    return Rows(np.ones_like(sigma), denoise=x0, convert=convert, keep=keep, advance=advance)


def _unipc_weights(levels: Levels, order: NDArray[np.int64], bh1: bool, predict_x0: bool) -> tuple[Values, Values]:
    """UniP and UniC from level k to k+1: two arrays [K, 5], over (c_k, m_{k+1}, m_k, m_{k-1}, m_{k-2})."""
    alpha, sigma = _variance_preserving(levels.sigma)
    next_alpha, next_sigma = _variance_preserving(levels.next_sigma)
    lambda_ = -np.log(levels.sigma)
    h = -np.log(levels.next_sigma) - lambda_
    hh = -h if predict_x0 else h
    B = hh if bh1 else np.expm1(hh)
    scale = next_alpha if predict_x0 else next_sigma
    predictor = np.zeros((len(h), 5))
    predictor[:, 0] = next_sigma / sigma if predict_x0 else next_alpha / alpha
    predictor[:, 2] = -scale * np.expm1(hh)
    corrector = predictor.copy()
    for p in (1, 2, 3):
        at = np.flatnonzero(order == p)
        if not len(at):
            continue
        r = np.stack([(lambda_[at - i] - lambda_[at]) / h[at] for i in range(1, p)] + [np.ones(len(at))], axis=1)
        R, b = _unipc_system(r, hh[at], B[at])
        rho = np.full((len(at), 1), 0.5) if p == 1 else np.linalg.solve(R, b[..., None])[..., 0]
        rho_p = np.full((len(at), 1), 0.5) if p == 2 else np.linalg.solve(R[:, :-1, :-1], b[:, :-1, None])[..., 0]
        weight = (scale * B)[at, None]
        corrector[at, 1] -= (weight * rho[:, -1:])[:, 0]
        corrector[at, 2] += (weight * rho[:, -1:])[:, 0]
        for weights, rhos in ((predictor, rho_p), (corrector, rho[:, :-1])):
            D1 = weight * rhos / r[:, :-1]  # of m_{k-i} - m_k
            weights[at, 2] += D1.sum(axis=1)
            weights[at, 3 : 2 + p] -= D1
    return predictor, corrector


def _unipc_system(r: Values, hh: Values, B: Values) -> tuple[Values, Values]:
    """R [n, p, p] and b [n, p] of Theorem 3.1, with r [n, p]: R_i = r^(i-1), b_i = i! hh phi_{i+1}(hh) / B."""
    p = r.shape[1]
    R = np.stack([r ** (i - 1) for i in range(1, p + 1)], axis=1)
    b = np.empty_like(r)
    phi, factorial = np.expm1(hh) / hh - 1, 1
    for i in range(1, p + 1):
        b[:, i - 1] = phi * factorial / B
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    return R, b


def _rows(levels: Levels) -> Values:
    return np.zeros((len(levels.sigma), COLUMNS))


def _unchanged(levels: Levels) -> Values:
    """Rows of `convert` with m = model output."""
    return np.tile([0.0, 1.0], (len(levels.sigma), 1))


def _variance_preserving(sigma: Values) -> tuple[Values, Values]:
    """alpha and sigma with alpha^2 + sigma^2 = 1, z = alpha x0 + sigma noise, of levels from 0 to infinity."""
    return 1 / np.hypot(1, sigma), 1 / np.hypot(1, 1 / sigma)


def _towards_x0(levels: Levels, prediction: Prediction, down: Values, up: Values) -> Rows:
    """From z = x0 + sigma noise straight towards x0, to level `down`, then up by noise; the U-Net sees alpha z."""
    alpha, sigma = _variance_preserving(levels.sigma)
    x0 = _x0(prediction, alpha, sigma) * np.stack([alpha, np.ones_like(alpha)], axis=1)
    part = down / levels.sigma
    return replace(_single_step(levels, x0, sample=part, picture=1 - part, noise=up), input_scale=alpha)


def _single_step(levels: Levels, x0: Values, *, sample: Values, picture: Values, noise: Values) -> Rows:
    """z_{k+1} = sample z_k + picture x0_k + noise n_k, written in the model output, which rounds least."""
    advance = _rows(levels)
    advance[:, SAMPLE] = sample + picture * x0[:, 0]
    advance[:, OUTPUT] = picture * x0[:, 1]
    advance[:, NOISE] = noise
    return Rows(np.ones(len(x0)), denoise=x0, convert=_unchanged(levels), keep=_rows(levels), advance=advance)


def _x0(prediction: Prediction, alpha: Values, sigma: Values) -> Values:
    """[K, 2]: the picture x0 from (z, model output), z = alpha x0 + sigma noise, v = alpha noise - sigma x0."""
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    rows = {"epsilon": (1 / alpha, -sigma / alpha), "v_prediction": (alpha, -sigma), "sample": (zero, one)}
    return np.stack(rows[prediction], axis=1)


def _noise(prediction: Prediction, alpha: Values, sigma: Values) -> Values:
    """[K, 2]: the noise from (z, model output)."""
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    rows = {"epsilon": (zero, one), "v_prediction": (sigma, alpha), "sample": (1 / sigma, -alpha / sigma)}
    return np.stack(rows[prediction], axis=1)


Rule = Callable[[Levels, Prediction, Options], Rows]
RULES: Mapping[str, Rule] = {
    "ddim": ddim,
    "plms": plms,
    "lcm": lcm,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "dpmpp-2m": dpmpp_2m,
    "unipc": unipc,
}
