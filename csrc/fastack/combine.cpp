#include "fastack/combine.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fastack {

namespace {

using std::ptrdiff_t;

constexpr int LANES = COMBINE_LANES;
constexpr int WIDE = 4; // blocks loaded together: whole cache lines of every frame

// Structure of the first stack below these multiples of its noise is taken for noise.
constexpr float BEND_LIMIT = 3.5f;
constexpr float RANGE_LIMIT = 5.5f;
constexpr float RANGE_NOISE = 3.0f; // mean range of nine normal deviates

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
    Region region;
    ptrdiff_t border, stride;
    std::vector<float> pixels;

    Plane(Region r, ptrdiff_t edge, float fill = NAN)
        : region(r), border(edge), stride(r.nx() + 2 * edge), pixels(stride * (r.ny() + 2 * edge), fill) {}
    float* at(ptrdiff_t y, ptrdiff_t x) {
        return pixels.data() + (y - region.y0 + border) * stride + (x - region.x0 + border);
    }
};

/// Structure of the robust first stack, over the window and one pixel around it.
struct Structure {
    Plane start, curvature, bend, range;
};

/// A rejected sample: where and of which frame.
struct Mark {
    ptrdiff_t y, x;
    int frame;

    bool operator<(const Mark& o) const {
        return y != o.y ? y < o.y : x != o.x ? x < o.x : frame < o.frame;
    }
    bool operator==(const Mark& o) const { return y == o.y && x == o.x && frame == o.frame; }
};

class Combiner {
  public:
    Combiner(const CombineSetup& setup, const CombineFrames& frames, const CombineInput& input,
             const CombineOutput& output)
        : setup_(setup), frames_(frames), input_(input), output_(output),
          window_{input.y0, input.y1, input.x0, input.x1}, n_(frames.n),
          samples_(size_t(n_) * LANES * WIDE), work_(size_t(n_) * LANES * 2),
          has_variance_(frames.shot || input.variance), shot_(has_variance_ ? size_t(n_) * LANES : 0),
          floor_(shot_.size()), factor_(input.factor ? shot_.size() : 0), shade_(input.shade ? shot_.size() : 0) {}

    void run() {
        if (setup_.reject == Reject::noise)
            run_noise();
        else
            for (ptrdiff_t y = window_.y0; y < window_.y1; ++y)
                combine_row(y, window_, nullptr, nullptr);
    }

  private:
    void run_noise() {
        Structure structure = find_structure();
        std::vector<Mark> marks;
        const bool grow = setup_.kappa_grow > 0;
        const Region region = grow ? window_.grown(1, input_) : window_;
        for (ptrdiff_t y = region.y0; y < region.y1; ++y)
            combine_row(y, region, &structure, grow ? &marks : nullptr);
        if (!marks.empty())
            second_look(structure, marks);
    }

    Structure find_structure() {
        const int radius = input_.radius;
        const Region inner = window_.grown(1, input_);     // where samples are tested
        const Region curved = window_.grown(2, input_);    // where the curvature is known
        const Region all = window_.grown(2 + radius, input_);
        Plane start(all, radius + 2), sigma(all, 0);
        for (ptrdiff_t y = all.y0; y < all.y1; ++y)
            for_blocks(all.x0, all.x1, [&](ptrdiff_t x, int width) {
                load(y, x, width);
                for (int at = 0; at < width; at += LANES) {
                    float value[LANES], noise[LANES];
                    if (input_.variance)
                        load_variance(y, x + at, std::min(LANES, width - at));
                    rows().combine.first_stack(frames_, block_samples(at), input_.variance ? floor_.data() : nullptr,
                                               value, noise);
                    std::copy_n(value, std::min(LANES, width - at), start.at(y, x + at));
                    std::copy_n(noise, std::min(LANES, width - at), sigma.at(y, x + at));
                }
            });

        Plane raw(curved, 1, 0.0f), range(curved, 0);
        std::vector<float> work(4 * (curved.nx() + 2 * radius));
        for (ptrdiff_t y = curved.y0; y < curved.y1; ++y) {
            const float* lines[7];
            for (int k = 0; k <= 2 * radius; ++k)
                lines[k] = start.at(y - radius + k, curved.x0 - radius);
            rows().combine.structure_row(lines, radius, curved.nx(), work.data(), raw.at(y, curved.x0),
                                         range.at(y, curved.x0));
        }
        Plane curvature(inner, 0), bend(inner, 0);
        for (ptrdiff_t y = inner.y0; y < inner.y1; ++y) {
            const float* lines[3];
            for (int k = 0; k < 3; ++k)
                lines[k] = raw.at(y - 1 + k, inner.x0 - 1);
            rows().combine.significant_row(lines, sigma.at(y, inner.x0), inner.nx(), BEND_LIMIT, RANGE_LIMIT,
                                           RANGE_NOISE, curvature.at(y, inner.x0), bend.at(y, inner.x0),
                                           range.at(y, inner.x0));
        }
        return {std::move(start), std::move(curvature), std::move(bend), std::move(range)};
    }

    /// Samples beside a rejected one of the same frame are looked at again, with a lower limit: interpolation and
    /// charge spread have carried the artefact there too.
    void second_look(Structure& structure, const std::vector<Mark>& marks) {
        std::vector<Mark> beside;
        beside.reserve(9 * marks.size());
        for (const Mark& mark : marks)
            for (ptrdiff_t y = std::max(mark.y - 1, window_.y0); y < std::min(mark.y + 2, window_.y1); ++y)
                for (ptrdiff_t x = std::max(mark.x - 1, window_.x0); x < std::min(mark.x + 2, window_.x1); ++x)
                    beside.push_back({y, x, mark.frame});
        std::sort(beside.begin(), beside.end());
        beside.erase(std::unique(beside.begin(), beside.end()), beside.end());

        std::vector<uint8_t> near(size_t(n_) * LANES);
        for (size_t at = 0; at < beside.size();) {
            const ptrdiff_t y = beside[at].y;
            ptrdiff_t columns[LANES];
            int lanes = 0;
            std::fill(near.begin(), near.end(), uint8_t(0));
            for (; at < beside.size() && beside[at].y == y; ++at) {
                if (!lanes || columns[lanes - 1] != beside[at].x) {
                    if (lanes == LANES)
                        break;
                    columns[lanes++] = beside[at].x;
                }
                near[size_t(beside[at].frame) * LANES + lanes - 1] = 1;
            }
            gather(y, columns, lanes);
            CombineBlock block = make_block(samples_.data(), &structure);
            block.near = near.data();
            for (int l = 0; l < lanes; ++l)
                set_structure(structure, y, columns[l], 1, l);
            rows().combine.combine(setup_, frames_, block);
            for (int l = 0; l < lanes; ++l)
                write(block, y, columns[l], 1, l);
        }
    }

    template <class Function> static void for_blocks(ptrdiff_t x0, ptrdiff_t x1, Function function) {
        for (ptrdiff_t x = x0; x < x1; x += LANES * WIDE)
            function(x, int(std::min<ptrdiff_t>(LANES * WIDE, x1 - x)));
    }

    void combine_row(ptrdiff_t y, Region region, Structure* structure, std::vector<Mark>* marks) {
        for_blocks(region.x0, region.x1, [&](ptrdiff_t x, int width) {
            load(y, x, width);
            for (int at = 0; at < width; at += LANES) {
                const int lanes = std::min(LANES, width - at);
                CombineBlock block = make_block(block_samples(at), structure);
                if (has_variance_)
                    load_variance(y, x + at, lanes);
                if (structure)
                    set_structure(*structure, y, x + at, lanes, 0);
                rows().combine.combine(setup_, frames_, block);
                write(block, y, x + at, lanes, 0);
                if (marks)
                    mark_rejected(block, y, x + at, lanes, *marks);
            }
        });
    }

    CombineBlock make_block(float* x, Structure* structure) {
        CombineBlock block;
        block.x = x;
        block.work = work_.data();
        if (has_variance_) {
            block.shot = shot_.data();
            block.floor = floor_.data();
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

    void set_structure(Structure& structure, ptrdiff_t y, ptrdiff_t x, int lanes, int lane) {
        std::copy_n(structure.start.at(y, x), lanes, local_[0] + lane);
        std::copy_n(structure.curvature.at(y, x), lanes, local_[1] + lane);
        std::copy_n(structure.bend.at(y, x), lanes, local_[2] + lane);
        std::copy_n(structure.range.at(y, x), lanes, local_[3] + lane);
    }

    float* block_samples(int at) { return samples_.data() + ptrdiff_t(at) * n_; }

    /// Samples of `width` pixels from (y, x), block after block, the last one filled up with NaN.
    void load(ptrdiff_t y, ptrdiff_t x, int width) {
        for (int i = 0; i < n_; ++i) {
            const float* from = input_.cube.image(i).row(y) + x;
            for (int at = 0; at < width; at += LANES) {
                float* to = block_samples(at) + ptrdiff_t(i) * LANES;
                const int lanes = std::min(LANES, width - at);
                if (lanes == LANES)
                    std::copy_n(from + at, LANES, to);
                else
                    std::fill(std::copy_n(from + at, lanes, to), to + LANES, NAN);
            }
        }
    }

    void load_variance(ptrdiff_t y, ptrdiff_t x, int lanes) {
        for (int i = 0; i < n_; ++i) {
            const ptrdiff_t to = ptrdiff_t(i) * LANES;
            if (input_.variance)
                std::copy_n(input_.variance.image(i).row(y) + x, lanes, floor_.data() + to);
            if (input_.factor)
                std::copy_n(input_.factor.image(i).row(y) + x, lanes, factor_.data() + to);
            if (input_.shade)
                for (int l = 0; l < lanes; ++l)
                    shade_[to + l] = shade(i, y, x + l);
        }
        if (!input_.variance)
            prepare();
    }

    void gather(ptrdiff_t y, const ptrdiff_t* columns, int lanes) {
        std::fill_n(samples_.data(), ptrdiff_t(n_) * LANES, NAN);
        for (int i = 0; i < n_; ++i) {
            const float* from = input_.cube.image(i).row(y);
            const ptrdiff_t to = ptrdiff_t(i) * LANES;
            for (int l = 0; l < lanes; ++l)
                samples_[to + l] = from[columns[l]];
            for (int l = 0; input_.variance && l < lanes; ++l)
                floor_[to + l] = input_.variance.image(i)(y, columns[l]);
            for (int l = 0; input_.factor && l < lanes; ++l)
                factor_[to + l] = input_.factor.image(i)(y, columns[l]);
            for (int l = 0; input_.shade && l < lanes; ++l)
                shade_[to + l] = shade(i, y, columns[l]);
        }
        if (has_variance_ && !input_.variance)
            prepare();
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

    void write(const CombineBlock& block, ptrdiff_t y, ptrdiff_t x, int lanes, int lane) {
        if (y < window_.y0 || y >= window_.y1)
            return;
        for (int l = 0; l < lanes; ++l) {
            const ptrdiff_t column = x + l - window_.x0, row = y - window_.y0;
            if (column < 0 || column >= window_.nx())
                continue;
            output_.data(row, column) = block.data[lane + l];
            output_.variance(row, column) = block.variance[lane + l];
            output_.count(row, column) = uint16_t(block.count[lane + l]);
            output_.low(row, column) = uint16_t(block.low[lane + l]);
            output_.high(row, column) = uint16_t(block.high[lane + l]);
        }
    }

    void mark_rejected(const CombineBlock& block, ptrdiff_t y, ptrdiff_t x, int lanes, std::vector<Mark>& marks) {
        for (int l = 0; l < lanes; ++l)
            if (block.low[l] + block.high[l])
                for (int i = 0; i < n_; ++i)
                    if (std::isnan(block.x[ptrdiff_t(i) * LANES + l]) && !std::isnan(input_.cube.image(i)(y, x + l)))
                        marks.push_back({y, x + l, i});
    }

    const CombineSetup& setup_;
    const CombineFrames& frames_;
    const CombineInput& input_;
    const CombineOutput& output_;
    const Region window_;
    const int n_;
    std::vector<float> samples_, work_;
    const bool has_variance_;
    std::vector<float> shot_, floor_;
    std::vector<uint8_t> factor_;
    std::vector<float> shade_;
    float local_[4][LANES];
};

} // namespace

void combine(const CombineSetup& setup, const CombineFrames& frames, const CombineInput& input,
             const CombineOutput& output) {
    Combiner(setup, frames, input, output).run();
}

} // namespace fastack
