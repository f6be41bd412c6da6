#include "fastack/combine.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

namespace fastack {

namespace {

using std::ptrdiff_t;

constexpr int LANES = COMBINE_LANES;

// Structure of the first stack below these multiples of its noise is taken for noise.
constexpr float BEND_LIMIT = 3.5f;
constexpr float RANGE_LIMIT = 5.5f;
constexpr float RANGE_NOISE = 3.0f; // mean range of nine normal deviates

// Beside a rejected sample, one within this part of the lower limit is left alone.
constexpr float CALM = 0.8f;

// A frame's excess over the stack is smooth where most of its surroundings have this part of it, and where the stack
// has light of this part of it in reach.
constexpr float SMOOTH = 0.4f;
constexpr float SMOOTH_LIGHT = 0.5f;
// Nothing in the sky is darker than the sky by so many sigmas of a frame: overshoots of the interpolation are no structure.
constexpr float DARK = 5.0f;

/// Copy to a whole block; what is not there becomes `rest`. The full case is a few instructions, not a call.
template <class T> void copy_lanes(const T* from, int lanes, T* to, T rest) {
    if (lanes == LANES)
        std::memcpy(to, from, LANES * sizeof(T));
    else
        std::fill(std::copy_n(from, lanes, to), to + LANES, rest);
}

struct Region {
    ptrdiff_t y0, y1, x0, x1;

    ptrdiff_t ny() const { return y1 - y0; }
    ptrdiff_t nx() const { return x1 - x0; }

    Region grown(ptrdiff_t by, const CombineInput& input) const {
        return {std::max<ptrdiff_t>(y0 - by, 0), std::min(y1 + by, input.cube.ny),
                std::max<ptrdiff_t>(x0 - by, 0), std::min(x1 + by, input.cube.nx)};
    }
};

/// An image over a region, addressed by the pixels of the cube; NaN around it.
struct Plane {
    Region region{};
    ptrdiff_t border = 0, stride = 0;
    std::vector<float> pixels;

    Plane() = default;
    Plane(Region r, ptrdiff_t edge, float fill = NAN)
        : region(r), border(edge), stride(r.nx() + 2 * edge), pixels(stride * (r.ny() + 2 * edge), fill) {}
    float* at(ptrdiff_t y, ptrdiff_t x) {
        return pixels.data() + (y - region.y0 + border) * stride + (x - region.x0 + border);
    }
};

/// Light of known stars: their mean profile, and the components of the frames' differences from it.
struct Glow {
    Plane mean;
    std::vector<Plane> components;
};

/// cos(m angle) and sin(m angle) at a place around a star, m = 0, 2, 4. Without an angle, in the middle, there is none.
class Waves {
  public:
    Waves(double dx, double dy, double r) {
        if (!(r > 0))
            return;
        const double c = dx / r, s = dy / r;
        cos2_ = float(c * c - s * s);
        sin2_ = float(2 * c * s);
    }
    float of(int order) const {
        switch (order) {
        case 2: return cos2_;
        case -2: return sin2_;
        case 4: return cos2_ * cos2_ - sin2_ * sin2_;
        case -4: return 2 * cos2_ * sin2_;
        default: return 1;
        }
    }

  private:
    float cos2_ = 0, sin2_ = 0;
};

/// Structure of the robust first stack, over the window and one pixel around it. It grows row by row, a little ahead
/// of the rejection, so that the samples are still in the cache when their turn comes.
struct Structure {
    Region region, curved, inner; // where samples are looked at, the curvature is known, samples are tested
    Glow stars;
    Plane start, sigma;      // first values
    Plane level, rest;       // these with no darkness that only overshoots make, less known stars; NaN around them
    Plane raw;               // curvature, noise included; 0 around it
    Plane curvature, bend, range;
    std::vector<uint8_t> quiet;   // 1: all samples lie within the limits, and are averaged already
    ptrdiff_t looked, bent, ready; // rows from here on are still to come

    Structure(const Region& all, const Region& known, const Region& tested, Glow glow, int radius)
        : region(all), curved(known), inner(tested), stars(std::move(glow)), start(all, 0), sigma(all, 0),
          level(all, radius + 1), rest(stars.mean.region.ny() ? all : Region{}, radius + 1), raw(known, 1, 0.0f),
          curvature(tested, 0), bend(tested, 0), range(known, 0), quiet(size_t(all.ny() * all.nx()), 0),
          looked(all.y0), bent(known.y0), ready(tested.y0) {}
    uint8_t* is_quiet(ptrdiff_t y, ptrdiff_t x) {
        return quiet.data() + (y - region.y0) * region.nx() + (x - region.x0);
    }
};

/// A block of pixels that lie apart.
struct Scattered {
    std::vector<float> samples; // as in CombineBlock
    ptrdiff_t y[LANES] = {}, x[LANES] = {};
    int count = 0;

    explicit Scattered(int n) : samples(size_t(n) * LANES, NAN) {}
    void add(const float* from, ptrdiff_t stride, ptrdiff_t row, ptrdiff_t column) {
        float* const to = samples.data() + count;
        for (size_t i = 0; i * LANES < samples.size(); ++i)
            to[i * LANES] = from[ptrdiff_t(i) * stride];
        y[count] = row;
        x[count++] = column;
    }
};

/// What the test of groups needs: the mean, and the frames' last three rows, with NaN around them.
struct Groups {
    Region region;
    Plane level;
    std::vector<float> rows, missing, work;
    std::vector<uint8_t> found, any, rejected;

    Groups(const Region& r, int n)
        : region(r), level(r, 1), rows(size_t(n) * 3 * size_t(r.nx() + 2), NAN), missing(size_t(r.nx() + 2), NAN),
          work(missing.size()), found(missing.size()), any(missing.size()), rejected(rows.size()) {}
    ptrdiff_t place(int frame, ptrdiff_t y, ptrdiff_t x) const {
        return (ptrdiff_t(frame) * 3 + y % 3) * (region.nx() + 2) + (x - region.x0 + 1);
    }
    float* at(int frame, ptrdiff_t y, ptrdiff_t x) { return rows.data() + place(frame, y, x); }
};

/// A sample to be looked at again: where, of which frame, and why.
struct Mark {
    ptrdiff_t y, x;
    int frame;
    float strength; // distance from the stack of the rejected sample beside it (or of itself)
    float shift;    // smooth excess of its frame around it
    bool out;       // with the group that it belongs to

    bool operator<(const Mark& o) const { return x != o.x ? x < o.x : frame < o.frame; } // within a row
};

class Combiner {
  public:
    Combiner(const CombineSetup& setup, const CombineFrames& frames, const CombineInput& input,
             const CombineOutput& output)
        : setup_(setup), frames_(frames), input_(input), output_(output),
          window_{input.y0, input.y1, input.x0, input.x1}, n_(frames.n), modelled_(setup.reject == Reject::noise),
          samples_(size_t(n_) * PANEL), factors_(setup.reject == Reject::noise ? samples_.size() : 0, uint8_t(255)),
          shades_(input.shade ? factors_.size() : 0), work_(size_t(n_) * LANES * 3),
          has_variance_(frames.shot || input.variance), shot_(has_variance_ ? size_t(n_) * LANES : 0),
          floor_(shot_.size()), factor_(shot_.size(), uint8_t(255)), shade_(input.shade ? shot_.size() : 0),
          robust_(modelled_ ? n_ : 0), near_(setup.reject == Reject::noise ? size_t(n_) * LANES : 0), shift_(near_.size()),
          stars_(size_t(frames.components) * LANES),
          grouped_(setup.reject == Reject::noise && combine_groups(n_, setup.kappa_group, setup.grow)),
          margin_(combine_margin(grouped_, setup.grow)) {
        if (modelled_)
            sum_constants();
    }

    void run() {
        if (setup_.reject == Reject::noise)
            run_noise();
        else
            for (ptrdiff_t y = window_.y0; y < window_.y1; ++y)
                combine_row(y);
    }

  private:
    void sum_constants() {
        light_.resize(size_t(n_));
        rest_.resize(size_t(n_));
        ground_.resize(size_t(n_));
        const auto [least, most] = std::minmax_element(frames_.weight, frames_.weight + n_);
        frames_.most_weight = *most / *least;
        if (frames_.most_weight == 1) { // then their size does not matter
            weight_.assign(size_t(n_), 1.0f);
            frames_.weight = weight_.data();
        }
        frames_.least_sky = *std::min_element(frames_.sky, frames_.sky + n_);
        for (int i = 0; frames_.shot && i < n_; ++i) {
            const double unit = double(frames_.weight[i]) * frames_.weight[i] / 255;
            light_[i] = float(unit * frames_.shot[i]);
            rest_[i] = float(unit * frames_.floor[i]);
            ground_[i] = float(unit * (double(frames_.shot[i]) * frames_.sky[i] + frames_.floor[i]));
        }
        frames_.light = light_.data();
        frames_.rest = rest_.data();
        frames_.ground = ground_.data();
    }

    /// Row by row, the second look one row behind the first, while the samples are still in the cache.
    void run_noise() {
        Structure structure = no_structure();
        const Region region = window_.grown(margin_, input_);
        const Region centres = window_.grown(margin_ - 1, input_); // of groups that reach into the window
        Groups groups(grouped_ ? region : Region{}, n_);
        std::vector<Mark> rejected;
        std::vector<std::vector<Mark>> marks(size_t(window_.ny())); // by row of the window
        for (ptrdiff_t y = region.y0; y < window_.y1 + margin_; ++y) {
            rejected.clear();
            advance(structure, y + 1); // a rejected sample's neighbours count
            if (y < region.y1)
                test_row(structure, y, region, rejected, grouped_ ? &groups : nullptr);
            for (const Mark& mark : rejected)
                spread(structure, mark, marks);
            if (grouped_ && y < region.y1)
                keep_rows(structure, y, rejected, groups);
            if (grouped_ && y > centres.y0 && y <= centres.y1)
                find_groups(structure, y - 1, centres, groups, marks);
            const ptrdiff_t done = y - margin_;
            if (done >= window_.y0)
                second_look(structure, done, marks[size_t(done - window_.y0)]);
        }
    }

    /// Rows of each frame at the mean seeing of the stars, the last three of them.
    void keep_rows(Structure& structure, ptrdiff_t y, const std::vector<Mark>& rejected, Groups& groups) const {
        const Region& region = groups.region;
        for (int i = 0; i < n_; ++i) {
            for (ptrdiff_t x = region.x0, end; x < region.x1; x = end) {
                end = std::min(x / PANEL * PANEL + PANEL, region.x1);
                std::copy_n(input_.cube.at(i, y, x), end - x, groups.at(i, y, x));
            }
            std::fill_n(groups.rejected.data() + groups.place(i, y, region.x0), region.nx(), uint8_t(0));
        }
        for (const Mark& mark : rejected)
            groups.rejected[size_t(groups.place(mark.frame, y, mark.x))] = 1;
        for (ptrdiff_t x = region.x0; !structure.stars.components.empty() && x < region.x1; ++x)
            if (*structure.stars.mean.at(y, x) != 0.0f)
                for (int i = 0; i < n_; ++i)
                    *groups.at(i, y, x) -= star_difference(structure, i, y, x);
    }

    /// A frame's samples around a pixel may each be within the limits, and yet be too many on one side: a faint trail.
    void find_groups(Structure& structure, ptrdiff_t y, const Region& centres, Groups& groups,
                     std::vector<std::vector<Mark>>& marks) const {
        const Region& region = groups.region;
        std::fill(groups.any.begin(), groups.any.end(), uint8_t(0));
        for (int i = 0; i < n_; ++i) {
            const float *samples[3], *level[3];
            for (int k = 0; k < 3; ++k) {
                const bool known = y - 1 + k >= region.y0 && y - 1 + k < region.y1;
                samples[k] = known ? groups.at(i, y - 1 + k, region.x0 - 1) : groups.missing.data();
                level[k] = known ? groups.level.at(y - 1 + k, region.x0 - 1) : groups.missing.data();
            }
            // only where it fails on the bare sky is it worth a second thought
            float limit = 0.0f;
            if (frames_.shot && !input_.variance)
                limit = setup_.kappa_group * std::sqrt((9.0f - 9.0f / float(n_)) *
                                                       (frames_.shot[i] * std::max(frames_.sky[i], 0.0f) + frames_.floor[i]));
            if (rows().combine.groups(samples, level, region.nx(), limit, groups.work.data(), groups.found.data()))
                for (ptrdiff_t x = 0; x < region.nx(); ++x)
                    groups.any[x] |= groups.found[x];
        }
        for (ptrdiff_t x = centres.x0; x < centres.x1; ++x)
            if (groups.any[x - region.x0])
                judge_groups(structure, y, x, groups, marks);
    }

    /// Frame after frame, the worst first, since each of them has its part in the mean that the others are held against.
    void judge_groups(Structure& structure, ptrdiff_t y, ptrdiff_t x, Groups& groups,
                      std::vector<std::vector<Mark>>& marks) const {
        std::vector<Group> sums(static_cast<size_t>(n_));
        int frames = 0;
        float slack = 0; // how far the mean itself may be wrong
        for (int i = 0; i < n_; ++i) {
            sums[size_t(i)] = sum_group(structure, i, y, x, groups);
            frames += sums[size_t(i)].count > 0;
            slack += sums[size_t(i)].allowance;
        }
        slack /= float(frames);
        while (frames > 1) {
            int worst = -1;
            float most = setup_.kappa_group;
            for (int i = 0; i < n_; ++i) {
                const Group& g = sums[size_t(i)];
                if (!g.count || (frames == 2 && g.excess < 0))
                    continue;
                const float sigmas = (std::abs(g.excess) - g.allowance - slack) / std::sqrt(g.variance);
                if (sigmas > most) {
                    most = sigmas;
                    worst = i;
                }
            }
            if (worst < 0)
                return;
            Group& found = sums[size_t(worst)];
            const Mark mark{y, x, worst, std::abs(found.excess) / float(found.count), 0.0f, true};
            const float sign = found.excess > 0 ? 1.0f : -1.0f;
            const float around = surroundings(structure, mark, sign);
            if (std::abs(found.excess) - found.allowance - slack - around * float(found.count) >
                setup_.kappa_group * std::sqrt(found.variance))
                mark_around(mark, 1 + setup_.grow, marks);
            found.count = 0;
            --frames;
            for (Group& other : sums)
                other.excess += found.part / float(frames);
        }
    }

    struct Group {
        float excess, part, allowance, variance; // `part`: of the samples that have a part in the mean
        int count;
    };

    /// Sum over 3x3 pixels of a frame's distance from the mean, each cut at the limit of single samples. Its variance
    /// is that of samples before interpolation, which moves noise about but leaves sums what they are.
    Group sum_group(Structure& structure, int i, ptrdiff_t cy, ptrdiff_t cx, Groups& groups) const {
        const Region& region = groups.region;
        Group group{};
        for (ptrdiff_t y = std::max(cy - 1, region.y0); y < std::min(cy + 2, region.y1); ++y)
            for (ptrdiff_t x = std::max(cx - 1, region.x0); x < std::min(cx + 2, region.x1); ++x) {
                const float level = *groups.level.at(y, x), d = *groups.at(i, y, x) - level;
                if (std::isnan(d))
                    continue;
                const float variance = white_variance(i, y, x, level), sigma = std::sqrt(variance);
                const float bend = *structure.bend.at(y, x), range = *structure.range.at(y, x);
                group.excess += std::clamp(d, -setup_.kappa_low * sigma, setup_.kappa_high * sigma);
                group.allowance += std::abs(frames_.seeing[i] * *structure.curvature.at(y, x)) +
                                   frames_.tolerance[i] * bend + frames_.jitter[i] * range +
                                   setup_.star_error * std::abs(star_difference(structure, i, y, x));
                const bool out = groups.rejected[size_t(groups.place(i, y, x))];
                group.part += out ? 0.0f : d;
                group.variance += variance * (out ? 1.0f + 1.0f / float(n_) : 1.0f - 1.0f / float(n_));
                ++group.count;
            }
        return group;
    }

    /// Of a sample before the interpolation.
    float white_variance(int i, ptrdiff_t y, ptrdiff_t x, float level) const {
        if (input_.variance) {
            const float factor = input_.factor ? float(*input_.factor.at(i, y, x)) / 255.0f : 1.0f;
            return *input_.variance.at(i, y, x) / std::max(factor, 1e-2f);
        }
        const float f = input_.shade ? shade(i, y, x) : 1.0f;
        return frames_.shot[i] * f * std::max(level - frames_.pedestal + frames_.sky[i], 0.0f) +
               frames_.floor[i] * f * f;
    }

    /// Excess of a frame over the first stack around a group, where it is least but for one of eight patches; all of
    /// the group's where the stack has light there that no known star explains.
    float surroundings(Structure& structure, const Mark& group, float sign) const {
        Patches patches = look_around(structure, group.frame, group.y, group.x, sign);
        if (patches.count < 3)
            return 0.0f;
        if (unknown_light(structure, group.y, group.x) >= SMOOTH_LIGHT * group.strength)
            return group.strength;
        std::nth_element(patches.excess, patches.excess + 1, patches.excess + patches.count);
        return std::max(patches.excess[1], 0.0f);
    }

    void mark_around(Mark mark, ptrdiff_t reach, std::vector<std::vector<Mark>>& marks) const {
        const ptrdiff_t y0 = std::max(mark.y - reach, window_.y0), y1 = std::min(mark.y + reach + 1, window_.y1);
        const ptrdiff_t x0 = std::max(mark.x - reach, window_.x0), x1 = std::min(mark.x + reach + 1, window_.x1);
        for (mark.y = y0; mark.y < y1; ++mark.y)
            for (mark.x = x0; mark.x < x1; ++mark.x)
                marks[size_t(mark.y - window_.y0)].push_back(mark);
    }

    Structure no_structure() const {
        const Region all = window_.grown(combine_reach(input_.radius, margin_), input_);
        return {all, window_.grown(margin_ + 1, input_), window_.grown(margin_, input_), render_stars(all), input_.radius};
    }

    /// Structure up to row `last`, and a first look at all that it and the surroundings of that row rest on.
    void advance(Structure& s, ptrdiff_t last) {
        const int radius = input_.radius;
        look_at_rows(s, std::min(last + 2 + std::max(radius, RING), s.region.y1));
        // what the model of the stars explains needs no allowance
        Plane& rest = input_.stars.flux ? s.rest : s.level;
        work_.resize(std::max(work_.size(), size_t(4 * (s.curved.nx() + 2 * radius))));
        for (; s.bent < std::min(last + 2, s.curved.y1); ++s.bent) {
            const float *lines[7], *whole[7];
            for (int k = 0; k <= 2 * radius; ++k) {
                lines[k] = rest.at(s.bent - radius + k, s.curved.x0 - radius);
                whole[k] = s.level.at(s.bent - radius + k, s.curved.x0 - radius);
            }
            rows().combine.structure_row(lines, whole, radius, s.curved.nx(), work_.data(), s.raw.at(s.bent, s.curved.x0),
                                         s.range.at(s.bent, s.curved.x0));
        }
        for (; s.ready < std::min(last + 1, s.inner.y1); ++s.ready) {
            const float* lines[3];
            for (int k = 0; k < 3; ++k)
                lines[k] = s.raw.at(s.ready - 1 + k, s.inner.x0 - 1);
            rows().combine.significant_row(lines, s.sigma.at(s.ready, s.inner.x0), s.inner.nx(), BEND_LIMIT, RANGE_LIMIT,
                                           RANGE_NOISE, s.curvature.at(s.ready, s.inner.x0),
                                           s.bend.at(s.ready, s.inner.x0), s.range.at(s.ready, s.inner.x0));
        }
    }

    /// First look at the rows before `end`, panel after panel; rows of a panel with one and the same shade follow each
    /// other.
    void look_at_rows(Structure& s, ptrdiff_t end) {
        const Region& all = s.region;
        const float darkest = input_.variance ? -INFINITY : frames_.pedestal - DARK * std::sqrt(frames_.mean_floor);
        while (s.looked < end) {
            const ptrdiff_t y0 = s.looked;
            const ptrdiff_t y1 = input_.shade ? std::min(y0 + 16 - ((input_.y + y0) & 15), all.y1) : y0 + 1;
            for (ptrdiff_t x0 = all.x0, x1; x0 < all.x1; x0 = x1) {
                x1 = std::min(x0 / PANEL * PANEL + PANEL, all.x1);
                if (input_.shade)
                    load_shade(y0, x0 / PANEL * PANEL, PANEL, shades_.data());
                for (ptrdiff_t y = y0; y < y1; ++y)
                    look_at_panel(y, x0, x1, s);
            }
            look_again(s);
            for (ptrdiff_t y = y0; y < y1; ++y) {
                const float* const start = s.start.at(y, all.x0);
                float* const level = s.level.at(y, all.x0);
                for (ptrdiff_t x = 0; x < all.nx(); ++x)
                    level[x] = start[x] < darkest ? darkest : start[x]; // NaN stays
                if (input_.stars.flux)
                    std::transform(level, level + all.nx(), s.stars.mean.at(y, all.x0), s.rest.at(y, all.x0), std::minus<>());
            }
            s.looked = y1;
        }
    }

    void look_at_panel(ptrdiff_t y, ptrdiff_t x0, ptrdiff_t x1, Structure& structure) {
        const ptrdiff_t panel = x0 / PANEL * PANEL;
        const CombineSamples row = panel_row(y, panel);
        for (ptrdiff_t block = x0 / LANES * LANES; block < x1; block += LANES) {
            const ptrdiff_t from = std::max(block, x0), to = std::min(block + LANES, x1), lane = block - panel;
            CombineSamples samples = row;
            samples.x += lane;
            samples.factor += lane;
            samples.shade += samples.shade ? lane : 0;
            samples.given += samples.given ? lane : 0;
            samples.next += samples.next ? lane : 0;
            if (lane) // a line of the cache holds them all
                samples.next_factor = nullptr;
            if (is_lit(structure.stars, y, from, int(to - from))) {
                std::fill(stars_.begin(), stars_.end(), 0.0f);
                set_stars(structure.stars.components, y, from, int(to - from), int(from - block));
                rows().combine.take_stars(frames_, stars_.data(), samples.x, samples.stride, work_.data());
                samples.x = work_.data();
                samples.stride = LANES;
            }
            float noise[LANES];
            uint8_t quiet[LANES];
            rows().combine.first_look(setup_, frames_, samples, looked_, noise, quiet);
            const ptrdiff_t first = from - block;
            std::copy(looked_.data + first, looked_.data + (to - block), structure.start.at(y, from));
            std::copy(noise + first, noise + (to - block), structure.sigma.at(y, from));
            for (ptrdiff_t l = first; l < to - block; ++l)
                if (!quiet[l]) {
                    robust_.add(samples.x + l, samples.stride, y, block + l);
                    if (robust_.count == LANES)
                        look_again(structure);
                }
            if (!setup_.median) {
                std::copy(quiet + first, quiet + (to - block), structure.is_quiet(y, from));
                write(looked_, y, from, int(to - from), int(first));
            }
        }
    }

    /// The samples of a panel's row where they lie, or their copy if the frames are apart.
    CombineSamples panel_row(ptrdiff_t y, ptrdiff_t x) {
        CombineSamples row;
        row.stride = row.noise_stride = PANEL;
        row.shade = input_.shade && !input_.variance ? shades_.data() : nullptr;
        if (input_.cube.interleaved()) {
            row.x = input_.cube.at(0, y, x);
            row.factor = input_.factor ? input_.factor.at(0, y, x) : factors_.data();
            row.given = input_.variance ? input_.variance.at(0, y, x) : nullptr;
            if (x + PANEL < input_.cube.nx) {
                row.next = input_.cube.at(0, y, x + PANEL);
                row.next_stride = PANEL;
                row.next_factor = input_.factor ? input_.factor.at(0, y, x + PANEL) : nullptr;
            }
            return row;
        }
        const int width = int(std::min<ptrdiff_t>(PANEL, input_.cube.nx - x));
        copy_panel(input_.cube, y, x, width, samples_.data());
        row.x = samples_.data();
        if (input_.factor)
            copy_panel(input_.factor, y, x, width, factors_.data());
        row.factor = factors_.data();
        if (input_.variance) {
            variances_.resize(samples_.size());
            copy_panel(input_.variance, y, x, width, variances_.data());
            row.given = variances_.data();
        }
        if (x + PANEL < input_.cube.nx) {
            row.next = input_.cube.at(0, y, x + PANEL);
            row.next_stride = input_.cube.frame_stride;
        }
        return row;
    }

    template <class T> void copy_panel(const Panels<const T>& from, ptrdiff_t y, ptrdiff_t x, int width, T* to) const {
        for (int i = 0; i < n_; ++i)
            std::copy_n(from.at(i, y, x), width, to + ptrdiff_t(i) * PANEL);
    }

    /// Scattered pixels that the mean does not settle.
    void look_again(Structure& structure) {
        Scattered& pixels = robust_;
        if (!pixels.count)
            return;
        float value[LANES], noise[LANES];
        for (int l = 0; l < LANES; ++l)
            noise[l] = l < pixels.count ? *structure.sigma.at(pixels.y[l], pixels.x[l]) : 0.0f;
        rows().combine.robust_look(frames_, pixels.samples.data(), bool(input_.variance), value, noise);
        for (int l = 0; l < pixels.count; ++l) {
            *structure.start.at(pixels.y[l], pixels.x[l]) = value[l];
            *structure.sigma.at(pixels.y[l], pixels.x[l]) = noise[l];
        }
        pixels.count = 0;
    }

    /// Every pixel sums the stars in their order, so that it does not matter which of them the region leaves out.
    Glow render_stars(const Region& region) const {
        const CombineStars& stars = input_.stars;
        Glow glow{Plane(stars.flux ? region : Region{}, 0, 0.0f), {}};
        glow.components.assign(size_t(frames_.components), glow.mean);
        for (ptrdiff_t s = 0; s < stars.flux.size; ++s) {
            const double cx = stars.xy(s, 0) - double(input_.x), cy = stars.xy(s, 1) - double(input_.y);
            const double radius = stars.radius[s];
            const ptrdiff_t y0 = std::max(region.y0, ptrdiff_t(std::ceil(std::max(cy - radius, -1e9))));
            const ptrdiff_t y1 = std::min(region.y1, ptrdiff_t(std::floor(std::min(cy + radius, 1e9))) + 1);
            const ptrdiff_t x0 = std::max(region.x0, ptrdiff_t(std::ceil(std::max(cx - radius, -1e9))));
            const ptrdiff_t x1 = std::min(region.x1, ptrdiff_t(std::floor(std::min(cx + radius, 1e9))) + 1);
            for (ptrdiff_t y = y0; y < y1; ++y)
                for (ptrdiff_t x = x0; x < x1; ++x) {
                    const double r = std::hypot(double(x) - cx, double(y) - cy);
                    if (r >= radius)
                        continue;
                    // the last quarter fades out: an edge would be structure
                    const float light = stars.flux[s] * float(std::min(4.0 * (1.0 - r / radius), 1.0));
                    const double place = std::min(r / stars.step, double(stars.profile.nx) - 1.001);
                    const ptrdiff_t bin = ptrdiff_t(place);
                    const float part = float(place - double(bin));
                    const Waves wave(double(x) - cx, double(y) - cy, r);
                    for (int k = 0; k <= frames_.components; ++k) {
                        const float* const p = stars.profile.row(k) + bin;
                        Plane& plane = k ? glow.components[size_t(k - 1)] : glow.mean;
                        const float shape = k ? wave.of(stars.order[k - 1]) : 1.0f;
                        *plane.at(y, x) += shape * light * (p[0] + part * (p[1] - p[0]));
                    }
                }
        }
        return glow;
    }

    static bool is_lit(Glow& glow, ptrdiff_t y, ptrdiff_t x, int lanes) {
        if (glow.components.empty())
            return false;
        const float* const light = glow.mean.at(y, x);
        return std::any_of(light, light + lanes, [](float value) { return value != 0.0f; });
    }

    /// Components of the stars' light in some lanes.
    void set_stars(std::vector<Plane>& components, ptrdiff_t y, ptrdiff_t x, int lanes, int lane) {
        for (size_t k = 0; k < components.size(); ++k)
            std::copy_n(components[k].at(y, x), lanes, stars_.data() + k * LANES + size_t(lane));
    }

    /// What known stars have more in one frame than in the mean of all.
    float star_difference(Structure& structure, int frame, ptrdiff_t y, ptrdiff_t x) const {
        float sum = 0;
        for (size_t k = 0; k < structure.stars.components.size(); ++k)
            sum += frames_.share[ptrdiff_t(k) * n_ + frame] * *structure.stars.components[k].at(y, x);
        return sum;
    }

    /// What was rejected is looked at again, with its surroundings in its own frame. Where they exceed the stack
    /// alike, it is no artefact but a wing of a wider star or a patch of sky: that excess is taken off. Otherwise
    /// its neighbours are held against a lower limit: interpolation has carried the artefact there too.
    void spread(Structure& structure, const Mark& rejected, std::vector<std::vector<Mark>>& marks) const {
        const Region reached = window_.grown(1, input_);
        if (rejected.y < reached.y0 || rejected.y >= reached.y1 || rejected.x < reached.x0 || rejected.x >= reached.x1)
            return;
        const float excess = smooth_excess(structure, rejected);
        const bool smooth = std::abs(excess) > SMOOTH * std::abs(rejected.strength);
        const float strength = smooth ? 0.0f : std::abs(rejected.strength);
        const ptrdiff_t reach = smooth ? 0 : 1;
        Mark mark{0, 0, rejected.frame, strength, excess, false};
        for (mark.y = rejected.y - reach; mark.y <= rejected.y + reach; ++mark.y)
            for (mark.x = rejected.x - reach; mark.x <= rejected.x + reach; ++mark.x) {
                const bool inside = mark.y >= window_.y0 && mark.y < window_.y1 && mark.x >= window_.x0 && mark.x < window_.x1;
                const bool self = mark.y == rejected.y && mark.x == rejected.x;
                if (inside && (self || !is_calm(structure, mark)))
                    marks[size_t(mark.y - window_.y0)].push_back(mark);
            }
    }

    /// Whether a second look at a sample would change nothing: it is well within the lower limit, and nothing else
    /// happens in its pixel.
    bool is_calm(Structure& structure, const Mark& mark) const {
        const ptrdiff_t y = mark.y, x = mark.x;
        const bool settled = *structure.is_quiet(y, x) && *structure.bend.at(y, x) == 0.0f &&
                             *structure.range.at(y, x) == 0.0f && !is_lit(structure.stars, y, x, 1);
        if (!settled)
            return false;
        const float level = *structure.start.at(y, x), d = *input_.cube.at(mark.frame, y, x) - level;
        const float factor = input_.factor ? float(*input_.factor.at(mark.frame, y, x)) / 255.0f : 1.0f;
        const float variance = input_.variance ? *input_.variance.at(mark.frame, y, x)
                                               : factor * white_variance(mark.frame, y, x, level);
        const float limit = CALM * setup_.kappa_grow;
        return !(d * d > limit * limit * variance); // nor does a missing one
    }

    void second_look(Structure& structure, ptrdiff_t y, std::vector<Mark>& marks) {
        std::stable_sort(marks.begin(), marks.end());
        for (size_t at = 0; at < marks.size();) {
            ptrdiff_t columns[LANES];
            int lanes = 0;
            std::fill(near_.begin(), near_.end(), uint8_t(0));
            std::fill(shift_.begin(), shift_.end(), 0.0f);
            while (at < marks.size() && lanes < LANES) {
                size_t end = at;
                while (end < marks.size() && marks[end].x == marks[at].x)
                    ++end;
                columns[lanes] = marks[at].x;
                mark_pixel(&marks[at], end - at, near_.data() + lanes, shift_.data() + lanes);
                ++lanes;
                at = end;
            }
            CombineBlock block = gather(structure, y, columns, lanes);
            block.near = near_.data();
            block.shift = shift_.data();
            rows().combine.combine(setup_, frames_, block);
            for (int l = 0; l < lanes; ++l)
                write(pixels_, y, columns[l], 1, l);
        }
        marks = {};
    }

    /// Fill one lane from the marks of one pixel. Where every sample of the pixel is beside some rejected one,
    /// only the strongest artefact's frame is held for guilty: the others were rejected for its sake.
    void mark_pixel(const Mark* marks, size_t count, uint8_t* near, float* shift) const {
        int frames = 0, strongest = -1;
        float most = 0;
        for (size_t k = 0; k < count; ++k) {
            const Mark& mark = marks[k];
            const ptrdiff_t at = ptrdiff_t(mark.frame) * LANES;
            const bool first = k == 0 || marks[k - 1].frame != mark.frame;
            if (first || std::abs(mark.shift) < std::abs(shift[at]))
                shift[at] = mark.shift;
            if (mark.strength > 0.0f && !near[at])
                frames += !std::isnan(*input_.cube.at(mark.frame, mark.y, mark.x));
            if (mark.strength > 0.0f)
                near[at] = std::max<uint8_t>(near[at], mark.out ? 2 : 1);
            if (mark.strength > most) {
                most = mark.strength;
                strongest = mark.frame;
            }
        }
        const ptrdiff_t y = marks->y - window_.y0, x = marks->x - window_.x0;
        if (frames == output_.count(y, x) + output_.low(y, x) + output_.high(y, x)) // all that there are
            for (int i = 0; i < n_; ++i)
                if (i != strongest)
                    near[ptrdiff_t(i) * LANES] = 0;
    }

    /// Excess of a frame over the first stack around one pixel: the lower median of eight patches of 3x3 pixels, of
    /// which a trail crosses two; 0 where the stack shows no light around that could be the cause.
    float smooth_excess(Structure& structure, const Mark& mark) const {
        const float sign = mark.strength > 0 ? 1.0f : -1.0f, distance = std::abs(mark.strength);
        if (unknown_light(structure, mark.y, mark.x) < SMOOTH_LIGHT * distance)
            return 0.0f;
        Patches around = look_around(structure, mark.frame, mark.y, mark.x, sign);
        if (around.count < 3)
            return 0.0f;
        float* const typical = around.excess + (around.count - 1) / 2;
        std::nth_element(around.excess, typical, around.excess + around.count);
        return sign * std::clamp(*typical, 0.0f, distance);
    }

    /// Eight patches of 3x3 pixels around a pixel: a frame's excess over the first stack, towards `sign`.
    struct Patches {
        float excess[8];
        int count = 0;
    };

    Patches look_around(Structure& structure, int frame, ptrdiff_t row, ptrdiff_t column, float sign) const {
        Patches patches;
        for_patches(structure, row, column, [&](int direction, const Region& patch) {
            float sum = 0;
            int count = 0;
            for (ptrdiff_t y = patch.y0; y < patch.y1; ++y)
                for (ptrdiff_t x = patch.x0; x < patch.x1; ++x) {
                    const float d = *input_.cube.at(frame, y, x) - *structure.start.at(y, x) - star_difference(structure, frame, y, x);
                    sum += std::isnan(d) ? 0.0f : d;
                    count += !std::isnan(d);
                }
            if (count && direction != CENTRE)
                patches.excess[patches.count++] = sign * sum / float(count);
        });
        return patches;
    }

    /// Largest light of the first stack in those patches and the pixel's own that no known star explains.
    float unknown_light(Structure& structure, ptrdiff_t row, ptrdiff_t column) const {
        float most = 0;
        for_patches(structure, row, column, [&](int, const Region& patch) {
            float sum = 0;
            int count = 0;
            for (ptrdiff_t y = patch.y0; y < patch.y1; ++y)
                for (ptrdiff_t x = patch.x0; x < patch.x1; ++x) {
                    const float known = input_.stars.flux ? *structure.stars.mean.at(y, x) : 0.0f;
                    const float light = *structure.start.at(y, x) - frames_.pedestal - known;
                    sum += std::isnan(light) ? 0.0f : light;
                    count += !std::isnan(light);
                }
            if (count)
                most = std::max(most, sum / float(count));
        });
        return most;
    }

    static constexpr int CENTRE = 4;

    template <class Function>
    static void for_patches(const Structure& structure, ptrdiff_t row, ptrdiff_t column, Function function) {
        const Region& known = structure.start.region;
        for (int direction = 0; direction < 9; ++direction) {
            const ptrdiff_t cy = row + (direction / 3 - 1) * RING, cx = column + (direction % 3 - 1) * RING;
            function(direction, Region{std::max(cy - 1, known.y0), std::min(cy + 2, known.y1),
                                       std::max(cx - 1, known.x0), std::min(cx + 2, known.x1)});
        }
    }

    void combine_row(ptrdiff_t y) {
        for (ptrdiff_t x = window_.x0, next; x < window_.x1; x = next) {
            next = std::min(x / LANES * LANES + LANES, window_.x1); // a block lies within a panel
            const int lanes = int(next - x);
            CombineBlock block = make_block(nullptr);
            load(y, x, lanes);
            if (has_variance_)
                load_variance(y, x, lanes);
            rows().combine.combine(setup_, frames_, block);
            write(pixels_, y, x, lanes, 0);
        }
    }

    /// Test the samples of the pixels that the first stack did not settle, sixteen such pixels at a time.
    void test_row(Structure& structure, ptrdiff_t y, const Region& region, std::vector<Mark>& marks, Groups* groups) {
        if (groups)
            std::copy_n(structure.start.at(y, region.x0), region.nx(), groups->level.at(y, region.x0));
        const uint8_t* const quiet = structure.is_quiet(y, region.x0);
        const float *const bend = structure.bend.at(y, region.x0), *const range = structure.range.at(y, region.x0);
        const float* const light = input_.stars.flux ? structure.stars.mean.at(y, region.x0) : nullptr;
        ptrdiff_t columns[LANES];
        int lanes = 0;
        for (ptrdiff_t k = 0; k < region.nx(); ++k) {
            if (!quiet[k] || bend[k] > 0.0f || range[k] > 0.0f || (light && light[k] != 0.0f))
                columns[lanes++] = region.x0 + k;
            if (lanes == 0 || (lanes < LANES && k + 1 < region.nx()))
                continue;
            CombineBlock block = gather(structure, y, columns, lanes);
            rows().combine.combine(setup_, frames_, block);
            for (int l = 0; l < lanes; ++l) {
                write(pixels_, y, columns[l], 1, l);
                if (groups)
                    *groups->level.at(y, columns[l]) = pixels_.level[l];
            }
            mark_rejected(block, structure, y, columns, lanes, marks);
            lanes = 0;
        }
    }

    CombineBlock make_block(Structure* structure) {
        CombineBlock block;
        block.x = samples_.data();
        block.out = &pixels_;
        block.work = work_.data();
        if (has_variance_) {
            block.shot = shot_.data();
            block.floor = floor_.data();
        }
        if (modelled_) {
            block.factor = factor_.data();
            block.shade = input_.shade && !input_.variance ? shade_.data() : nullptr;
            block.given = input_.variance ? floor_.data() : nullptr;
        }
        if (structure) {
            std::fill_n(local_[0], 4 * LANES, 0.0f);
            block.start = local_[0];
            block.curvature = local_[1];
            block.bend = local_[2];
            block.range = local_[3];
        }
        return block;
    }

    /// Whether there is light of known stars.
    bool set_structure(Structure& structure, ptrdiff_t y, ptrdiff_t x, int lane) {
        local_[0][lane] = *structure.start.at(y, x);
        local_[1][lane] = *structure.curvature.at(y, x);
        local_[2][lane] = *structure.bend.at(y, x);
        local_[3][lane] = *structure.range.at(y, x);
        const bool lit = is_lit(structure.stars, y, x, 1);
        if (lit)
            set_stars(structure.stars.components, y, x, 1, lane);
        return lit;
    }

    /// Samples of pixels from (y, x), the block filled up with NaN.
    void load(ptrdiff_t y, ptrdiff_t x, int lanes) {
        for (int i = 0; i < n_; ++i)
            copy_lanes(input_.cube.at(i, y, x), lanes, samples_.data() + ptrdiff_t(i) * LANES, NAN);
    }

    void load_variance(ptrdiff_t y, ptrdiff_t x, int lanes) {
        for (int i = 0; i < n_; ++i) {
            const ptrdiff_t to = ptrdiff_t(i) * LANES;
            if (input_.variance)
                copy_lanes(input_.variance.at(i, y, x), lanes, floor_.data() + to, 0.0f);
            if (input_.factor)
                copy_lanes(input_.factor.at(i, y, x), lanes, factor_.data() + to, uint8_t(0));
        }
        if (input_.shade)
            load_shade(y, x, LANES, shade_.data());
        if (!input_.variance)
            prepare();
    }

    /// Shades of so many columns from (y, x), frame by frame.
    void load_shade(ptrdiff_t y, ptrdiff_t x, int width, float* to) const {
        for (int i = 0; i < n_; ++i, to += width)
            for (int l = 0, end; l < width; l = end) {
                end = std::min(l + LANES - int((input_.x + x + l) & (LANES - 1)), width);
                std::fill(to + l, to + end, shade(i, y, x + l));
            }
    }

    /// One lane of a block; the memory that the next one lies in is asked for meanwhile, as no processor foresees it.
    template <class T>
    void gather_lane(const Panels<const T>& from, ptrdiff_t y, const ptrdiff_t* column, const ptrdiff_t* next, T* to) const {
        const T* const lane = from.at(0, y, *column);
        const T* const soon = from.at(0, y, *next);
        const ptrdiff_t step = from.frame_stride;
        for (ptrdiff_t i = 0; i < n_; ++i) {
            __builtin_prefetch(soon + i * step);
            to[i * LANES] = lane[i * step];
        }
    }

    /// A block of pixels of one row.
    CombineBlock gather(Structure& structure, ptrdiff_t y, const ptrdiff_t* columns, int lanes) {
        CombineBlock block = make_block(&structure);
        std::fill(stars_.begin(), stars_.end(), 0.0f);
        for (int l = 0; l < lanes; ++l)
            if (set_structure(structure, y, columns[l], l))
                block.stars = stars_.data();
        if (lanes < LANES)
            std::fill_n(samples_.data(), ptrdiff_t(n_) * LANES, NAN);
        for (int i = 0; i < n_; ++i)
            __builtin_prefetch(input_.cube.at(i, y, columns[0]));
        for (int l = 0; l < lanes; ++l) {
            const ptrdiff_t *const column = columns + l, *const next = columns + std::min(l + 1, lanes - 1);
            gather_lane(input_.cube, y, column, next, samples_.data() + l);
            if (input_.variance)
                gather_lane(input_.variance, y, column, next, floor_.data() + l);
            if (input_.factor)
                gather_lane(input_.factor, y, column, next, factor_.data() + l);
            for (int i = 0; input_.shade && i < n_; ++i)
                shade_[size_t(i * LANES + l)] = shade(i, y, *column);
        }
        if (has_variance_ && !input_.variance)
            prepare();
        return block;
    }

    void prepare() {
        rows().combine.prepare(frames_, input_.factor ? factor_.data() : nullptr,
                               input_.shade ? shade_.data() : nullptr, shot_.data(), floor_.data());
    }

    float shade(int i, ptrdiff_t y, ptrdiff_t x) const {
        const Image<const float> map = input_.shade.image(i);
        // output coordinates may be negative in the halo: shift right rounds down
        const ptrdiff_t by = ((input_.y + y) >> 4) - input_.shade_y, bx = ((input_.x + x) >> 4) - input_.shade_x;
        return map(std::clamp<ptrdiff_t>(by, 0, map.ny - 1), std::clamp<ptrdiff_t>(bx, 0, map.nx - 1));
    }

    void write(const CombinePixels& pixels, ptrdiff_t y, ptrdiff_t x, int lanes, int lane) {
        if (y < window_.y0 || y >= window_.y1)
            return;
        const ptrdiff_t x0 = std::max(x, window_.x0), width = std::min(x + lanes, window_.x1) - x0;
        const ptrdiff_t row = y - window_.y0, column = x0 - window_.x0, from = lane + x0 - x;
        if (width <= 0)
            return;
        const auto copy = [&](const auto& values, const auto& image) {
            std::copy_n(values + from, width, image.row(row) + column);
        };
        copy(pixels.data, output_.data);
        copy(pixels.variance, output_.variance);
        copy(pixels.background, output_.background);
        copy(pixels.count, output_.count);
        copy(pixels.low, output_.low);
        copy(pixels.high, output_.high);
    }

    void mark_rejected(const CombineBlock& block, Structure& structure, ptrdiff_t y, const ptrdiff_t* columns, int lanes,
                       std::vector<Mark>& marks) {
        for (int l = 0; l < lanes; ++l)
            if (pixels_.low[l] + pixels_.high[l])
                for (int i = 0; i < n_; ++i)
                    if (std::isnan(block.x[ptrdiff_t(i) * LANES + l])) {
                        const ptrdiff_t x = columns[l];
                        const float sample = *input_.cube.at(i, y, x) - star_difference(structure, i, y, x);
                        if (!std::isnan(sample))
                            marks.push_back({y, x, i, sample - pixels_.data[l], 0.0f, false});
                    }
    }

    const CombineSetup& setup_;
    CombineFrames frames_;
    const CombineInput& input_;
    const CombineOutput& output_;
    const Region window_;
    const int n_;
    const bool modelled_; // noise: whether the average's variance is the model's in each block
    std::vector<float> samples_; // of a panel's row or of a block
    std::vector<uint8_t> factors_; // of a panel's row
    std::vector<float> shades_, variances_;
    std::vector<float> work_;
    const bool has_variance_;
    std::vector<float> shot_, floor_;
    std::vector<uint8_t> factor_;
    std::vector<float> shade_;
    Scattered robust_;
    std::vector<uint8_t> near_;
    std::vector<float> shift_;
    std::vector<float> stars_; // components of the stars' light in the block
    const bool grouped_;       // whether groups of pixels are tested
    const int margin_;         // around the window, where samples are tested
    std::vector<float> weight_, light_, rest_, ground_;
    float local_[4][LANES];
    CombinePixels looked_{}; // nothing is rejected in the first look
    CombinePixels pixels_;
};

} // namespace

void combine(const CombineSetup& setup, const CombineFrames& frames, const CombineInput& input,
             const CombineOutput& output) {
    Combiner(setup, frames, input, output).run();
}

} // namespace fastack
