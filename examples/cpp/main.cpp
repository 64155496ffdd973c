// From images to a point cloud, with nothing but the files of a bundle. README.md says how to build and run it.

#include <array>
#include <cmath>
#include <exception>
#include <iostream>
#include <optional>
#include <sstream>

#include "files.hpp"
#include "stage.hpp"

using Intrinsics = std::array<float, 4>;  // fx, fy, cx, cy in pixels

// Images as the network takes them: (V, 3, H, W) float32, (level / 255 - mean) / deviation.
ov::Tensor normalized(const std::vector<Image>& images, const Bundle& bundle) {
    static const std::map<std::string, std::array<std::array<float, 3>, 2>> constants{
        {"dinov2", {{{0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}}}}, {"identity", {{{0, 0, 0}, {1, 1, 1}}}}};
    const std::string name = bundle.manifest().at("model").at("data_norm_type");
    if (constants.count(name) == 0) throw Failure("images are normalised as " + name + ", which is unknown here");
    const auto& [mean, deviation] = constants.at(name);
    ov::Tensor result(ov::element::f32, {images.size(), 3, images[0].height, images[0].width});
    float* value = result.data<float>();
    for (const Image& image : images)
        for (std::size_t channel = 0; channel < 3; ++channel)
            for (std::size_t i = channel; i < image.pixels.size(); i += 3)
                *value++ = (image.pixels[i] / 255.0f - mean[channel]) / deviation[channel];
    return result;
}

// A float32 tensor of zeros.
ov::Tensor zeros(const ov::Shape& shape) {
    ov::Tensor result(ov::element::f32, shape);
    std::memset(result.data(), 0, result.get_byte_size());
    return result;
}

// Inputs of the geometry encoder for views of which only the intrinsics are known: unit rays, their flag, and zeros.
Tensors geometry_inputs(const Intrinsics& intrinsics, std::size_t views, std::size_t height, std::size_t width) {
    Tensors inputs{{"ray_directions", zeros({views, height, width, 3})}, {"depth", zeros({views, height, width, 1})},
                   {"depth_log_scale", zeros({views, 1})},               {"rotation", zeros({views, 4})},
                   {"translation", zeros({views, 3})},                   {"translation_log_scale", zeros({views, 1})},
                   {"modality_flags", zeros({views, 5})}};
    float* ray = inputs.at("ray_directions").data<float>();
    for (std::size_t view = 0; view < views; ++view) {
        inputs.at("modality_flags").data<float>()[5 * view] = 1;  // the first flag: ray directions are given
        for (std::size_t row = 0; row < height; ++row)
            for (std::size_t column = 0; column < width; ++column, ray += 3) {
                const auto& [fx, fy, cx, cy] = intrinsics;
                const float x = (static_cast<float>(column) - cx) / fx, y = (static_cast<float>(row) - cy) / fy;
                const float inverse_length = 1 / std::sqrt(x * x + (y * y + 1));
                ray[0] = x * inverse_length, ray[1] = y * inverse_length, ray[2] = inverse_length;
            }
    }
    return inputs;
}

// The defaults of `infer`, as post-processing takes them.
ov::Tensor scene_options() {
    const double degree = std::acos(-1.0) / 180;
    const float values[] = {
        1,                                        // points only inside the mask
        1,                                        // leave out depth edges:
        static_cast<float>(std::cos(5 * degree)), // where normals turn by more than 5 degrees
        0.03f,                                    // and depth jumps by more than 3 %
        0, 0, 0,                                  // leave out none for their confidence
    };
    ov::Tensor options(ov::element::f32, {7});
    std::memcpy(options.data(), values, sizeof values);
    return options;
}

// Features of all views: of their images, and of their intrinsics if they are known.
Tensors encode(ov::Core& core, const Bundle& bundle, const ov::Tensor& images,
               const std::optional<Intrinsics>& intrinsics) {
    const ov::Shape size = images.get_shape();

    // 1. Image encoder, a chunk of views at a time. Its outputs are collected, because the aggregator takes all views.
    Tensors features;
    Stage encoder(core, bundle, "image_encoder");
    for (const auto& [first, last] : chunks(size[0], bundle.chunk("image_encoder"))) {
        const Tensors encoded = encoder.run({{"images", views_of(images, first, last)}});
        for (const auto& [name, part] : encoded) {
            ov::Shape shape = part.get_shape();
            shape[0] = size[0];
            if (first == 0) features[name] = ov::Tensor(part.get_element_type(), shape);
            part.copy_to(views_of(features[name], first, last));
        }
    }
    if (!intrinsics) return features;

    // 2. Geometry encoder, only where something is known: what it gives is added to the features of the images.
    Stage geometry(core, bundle, "geometry_encoder");
    for (const auto& [first, last] : chunks(size[0], bundle.chunk("geometry_encoder"))) {
        Tensors encoded = geometry.run(geometry_inputs(*intrinsics, last - first, size[2], size[3]));
        const ov::Tensor& added = encoded.at("geometry_features");
        float* sum = views_of(features.at("patch_features"), first, last).data<float>();
        for (std::size_t i = 0; i < added.get_size(); ++i) sum[i] += added.data<const float>()[i];
    }
    return features;
}

PointCloud reconstruct(const Bundle& bundle, const std::vector<Image>& colors,
                       const std::optional<Intrinsics>& intrinsics) {
    const ov::Tensor images = normalized(colors, bundle);
    const std::size_t views = colors.size(), height = colors[0].height, width = colors[0].width;
    ov::Core core;
    Tensors features = encode(core, bundle, images, intrinsics);

    // 3. Aggregator, all views at once. Networks without extra tokens have no such input, and it is not looked at.
    features["features"] = features.at("patch_features");
    const Tensors aggregated = Stage(core, bundle, "aggregator").run(features);

    // 4. Dense head and 5. post-processing, a chunk of views at a time.
    Stage head(core, bundle, "dense_head"), scene(core, bundle, "scene");
    PointCloud cloud;
    for (const auto& [first, last] : chunks(views, bundle.chunk("dense_head"))) {
        Tensors part;
        for (const auto& [name, values] : aggregated)
            if (name != "metric_scaling_factor") part[name] = views_of(values, first, last);
        Tensors maps = head.run(part);
        maps["unscaled_depth_along_ray"] = maps.at("depth_along_ray");
        maps["unscaled_cam_trans"] = maps.at("cam_trans");
        maps["metric_scaling_factor"] = aggregated.at("metric_scaling_factor");
        maps["images"] = views_of(images, first, last);
        maps["kept"] = ov::Tensor(ov::element::boolean, {last - first, height, width});
        std::memset(maps.at("kept").data(), 1, maps.at("kept").get_byte_size());  // every pixel counts
        maps["options"] = scene_options();
        const Tensors finished = scene.run(maps);

        const float* point = finished.at("pts3d").data<const float>();
        const char* inside = static_cast<const char*>(finished.at("mask").data());
        for (std::size_t view = first; view < last; ++view)
            for (std::size_t i = 0; i < colors[view].pixels.size(); i += 3, point += 3, ++inside)
                if (*inside && std::isfinite(point[0]) && std::isfinite(point[1]) && std::isfinite(point[2]))
                    cloud.add(point, &colors[view].pixels[i]);
    }
    return cloud;
}

// Four numbers with commas between them.
Intrinsics parse_intrinsics(const std::string& text) {
    std::istringstream stream(text);
    Intrinsics values{};
    bool good = true;
    for (std::size_t i = 0; i < values.size(); ++i)
        good = good && (i == 0 || stream.get() == ',') && stream >> values[i] && std::isfinite(values[i]);
    if (!good || stream.peek() != std::istringstream::traits_type::eof() || values[0] <= 0 || values[1] <= 0)
        throw Failure("--intrinsics " + text + ": give fx,fy,cx,cy in pixels of the images, the first two above 0");
    return values;
}

int main(int count, char** given) {
    std::vector<std::string> paths(given + 1, given + count);
    try {
        std::optional<Intrinsics> intrinsics;
        if (paths.size() >= 2 && paths[0] == "--intrinsics") {
            intrinsics = parse_intrinsics(paths[1]);
            paths.erase(paths.begin(), paths.begin() + 2);
        }
        if (paths.size() < 3 || paths[0].rfind("--", 0) == 0) {
            std::cerr << "usage: reconstruct [--intrinsics fx,fy,cx,cy] BUNDLE OUT.ply IMAGE.ppm...\n";
            return 2;
        }
        PointCloud::check_place(paths[1]);
        const Bundle bundle(paths[0]);
        bundle.check_views(paths.size() - 2);
        std::vector<Image> images;
        for (std::size_t i = 2; i < paths.size(); ++i) {
            images.push_back(read_ppm(paths[i], bundle));
            if (images.back().width != images[0].width || images.back().height != images[0].height)
                throw Failure(paths[i] + ": has another size than " + paths[2] + "; images of a call have one size");
        }
        const PointCloud cloud = reconstruct(bundle, images, intrinsics);
        cloud.write(paths[1]);
        std::cout << paths[1] << ": " << cloud.size() << " points of " << images.size() << " views\n";
        return 0;
    } catch (const json::exception& error) {
        const std::string text = error.what();  // "[json.exception.parse_error.101] parse error at ..."
        std::cerr << "Error: " << paths[0] << ": manifest.json is damaged (" << text.substr(text.find("] ") + 2)
                  << "); build the bundle again\n";
    } catch (const std::bad_alloc&) {
        std::cerr << "Error: memory ran out; give the process more, or use fewer or smaller images\n";
    } catch (const std::exception& error) {
        std::cerr << "Error: " << last_line(error) << '\n';
    }
    return 1;
}
