#pragma once
// Positions, fluxes and shapes of stars from fits of an elliptical Moffat profile.
//
// All functions are serial and re-entrant, and treat each star by itself: the order of the list does not
// matter.

#include "fastack/view.hpp"

#include <cstddef>
#include <cstdint>

namespace fastack {

/// I = (1 + k Q)^(-1/eta), k = 2^eta - 1, Q = a dx^2 + 2 b dx dy + c dy^2 (pixel^-2): Q = 1 at half maximum
/// for any exponent beta = 1/eta (Moffat 1969, A&A 3, 455). The pixel's response is part of the profile.
struct MoffatShape {
    double a = 0;
    double b = 0;
    double c = 0;
    double eta = 0;
    bool integrated = false;

    double determinant() const { return a * c - b * b; }
    double fwhm() const;   // geometric mean of both axes, pixel, before any integration
    double volume() const; // integral over the plane for a peak of 1, pixel^2
};

/// An image and all stars known in it; `peak` and `shape` give the light of neighbours, NaN peak: none known.
struct StarField {
    Image<const float> image;
    const double* xy = nullptr; // x, y of the stars
    const double* peak = nullptr;
    const double* sky = nullptr;   // first guess, ADU
    const double* noise = nullptr; // of the background in one pixel, ADU
    std::ptrdiff_t n = 0;
    MoffatShape shape;
    double radius = 0;       // of the measuring window, pixel
    double inverse_gain = 0; // ADU per electron; 0: no photon noise
    double saturation = 0;   // pixels at or above are left out; infinity where not known
};

/// One star, fitted with the shape of the field (`fit_stars`) or with its own (`fit_moffat`).
struct StarFit {
    double x, y, peak, sky;
    double xy_err, peak_err;
    double top;              // highest pixel near the centre above `sky`, ADU; NaN where the centre is missing
    double width, width_err; // fit_stars: factor on the field's width, NaN where that did not converge
    double a, b, c, eta;     // fit_moffat: its shape, with `width_err` its relative error
    double chi2;             // weighted squares of the residuals
    std::int32_t pixels;     // that took part
    std::int32_t missing;    // outside the image or NaN
    std::int32_t saturated;
    std::int32_t neighbours; // other stars of the list within the window
    std::int32_t converged;
    std::int32_t padding;
};

/// Full width at half maximum, along a direction, of the profile's mean over a pixel (4x4 Gauss-Legendre points).
/// `width`: that of the profile itself.
double width_over_pixel(const MoffatShape&, double angle, double width);

/// Half maximum in ring means about the brightest of the nine pixels around each position: a first guess of
/// the width, good to 20 %, and the height of that pixel above the sky.
void star_rings(Image<const float>, const double* xy, const double* sky, std::ptrdiff_t n, double* fwhm, double* peak);

/// Median and 1.4826 MAD of the pixels between two radii.
void sky_annulus(Image<const float>, const double* xy, std::ptrdiff_t n, double inner, double outer, double* level,
                 double* noise);

/// Fit x, y, peak and sky of the given stars with the field's shape; light of neighbours is taken away first.
/// After the first pass, stars with neighbours are fitted up to `passes` times more, each time with the neighbours
/// as the pass before has left them, until those no longer change. `fits` has a row for every star of the field;
/// those that are not asked for count as not converged.
void fit_stars(const StarField&, Span<const std::int64_t> rows, int passes, StarFit* fits);

/// Fit all eight parameters of the stars `rows` one by one (Levenberg-Marquardt, start: the field's shape).
void fit_moffat(const StarField&, Span<const std::int64_t> rows, StarFit* fits);

/// One shape for the stars `rows`, each with its own position, peak and sky: Gauss-Newton on all stars at
/// once, those that disagree with the others weighted down. `likelihood`: -2 log likelihood of each of them, NaN where
/// it had no part. False where the fit does not converge.
bool fit_shape(const StarField&, Span<const std::int64_t> rows, MoffatShape& shape, double* likelihood);

} // namespace fastack
